"""A run folder small enough to train BLSP in seconds: a text LLM, tones, labels for them, and the starter encoder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from tiny_run import make_run
from transformers import AutoModelForCausalLM, AutoTokenizer

from speechgpt.dialogue import Speech
from stages.config import Source
from units.audio import SAMPLE_RATE, save_wav
from variants.blsp.adapter_shape import AdapterShape
from variants.blsp.config import BlspConfig
from variants.blsp.data.labels import Label, write_labels

PITCHES = {"red": 200.0, "blue": 800.0, "green": 3000.0}
SHAPE = AdapterShape([3, 3], [2, 2], 8)


def tone(pitch: float, seconds: float) -> np.ndarray:
    """A sine of 16 kHz, float32 (T,)."""
    return np.sin(2 * np.pi * pitch * np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE).astype(np.float32) * 0.3


def make_blsp_run(run: Path, count: int = 30) -> Path:
    """A run folder with `labels.jsonl` on tones, a manifest of the same tones with texts, and `chats.jsonl`."""
    make_run(run)
    draw = np.random.default_rng(0)
    labels, rows = [], []
    for i in range(count):
        word = list(PITCHES)[i % len(PITCHES)]
        wav = run / f"wav/t{i}.wav"
        save_wav(wav, tone(PITCHES[word] * float(draw.uniform(0.9, 1.1)), float(draw.uniform(0.3, 0.7))))
        labels.append(Label(f"t{i}", Speech(str(wav)), f"the {word} one", "answer", "my cat", f"{word} dog"))
        rows.append({"id": f"t{i}", "audio": f"wav/t{i}.wav", "text": f"{word} dog"})
    write_labels(run / "labels.jsonl", labels)
    (run / "asr.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chats = [{"question": f"one {word}", "answer": f"two {word}"} for word in PITCHES for _ in range(5)]
    (run / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    return run


def saying_words(llm: Path, out: Path) -> Path:
    """A copy of a text LLM that prefers every token with a letter to the others, so that no reply is without a word."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(llm), AutoTokenizer.from_pretrained(llm)
    words = [any(map(str.isalpha, tokenizer.decode([i], skip_special_tokens=True))) for i in range(len(tokenizer))]
    head = model.get_output_embeddings().weight
    head.data[~torch.tensor(words + [False] * (len(head) - len(words)))] = 0
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def blsp_config(run: Path, **changes) -> BlspConfig:
    """A stage of kind speech on the tones; `training` is merged."""
    training = {
        "max_steps": 4,
        "save_steps": 2,
        "eval_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "disable_tqdm": True,
        **changes.pop("training", {}),
    }
    fields = {
        "stage": "listening",
        "model": "text_llm",
        "out": "blsp",
        "run": run,
        "block_size": 96,
        "data": [Source("labels.jsonl")],
        "encoder_layer": 1,
        "adapter": SHAPE,
        "trainable": ["adapter"],
        "dev_documents": 3,
        "samples": 1,
    }
    return BlspConfig(**{**fields, **changes, "training": training})
