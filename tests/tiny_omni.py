"""A run folder small enough to train LLaMA-Omni in seconds: a text LLM, tones, answers with units, and a vocoder."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
from tiny_blsp import PITCHES, tone
from tiny_run import CODEBOOK, K, make_run
from tiny_vocoders import VOCOS, loud_vocoder

from instruct_data.build.records import write_conversations
from speechgpt.dialogue import Conversation, Message, Speech
from speechgpt.prompts import tts_prompt
from stages.config import Source
from units.audio import save_wav
from units.vocoder.unit_vocoder import UnitVocoder
from variants.llama_omni.config import OmniConfig
from variants.llama_omni.network.shapes import AdaptorShape, DecoderShape

ADAPTOR = AdaptorShape(5, 16)
DECODER = DecoderShape(2, 32, 2, 48, 6, "state_and_word")


def spoken(text: str) -> tuple[int, ...]:
    """Units of a text: a fixed few for each word."""
    return tuple(unit for word in text.split() for unit in random.Random(word).choices(range(K), k=4))


def tiny_vocoder() -> UnitVocoder:
    """A waveform vocoder of the tiny run's codebook, whose output depends on every unit."""
    return loud_vocoder(VOCOS, codebook=CODEBOOK)


def make_omni_run(run: Path, count: int = 30) -> Path:
    """A run folder with `data/chain.jsonl.gz` on tones, `data/tts.jsonl.gz`, `chats.jsonl`, and `vocoder/`."""
    make_run(run)
    draw = np.random.default_rng(0)
    chain, read = [], []
    for i in range(count):
        word = list(PITCHES)[i % len(PITCHES)]
        wav = run / f"wav/t{i}.wav"
        save_wav(wav, tone(PITCHES[word] * float(draw.uniform(0.9, 1.1)), float(draw.uniform(0.3, 0.7))))
        answer = f"the {word} one"
        asked = Message("human", (Speech(str(wav)),))
        chain.append(
            Conversation((asked, Message("assistant", (f"{word} dog", answer, spoken(answer)))), "chain", f"t{i}")
        )
        read.append(
            Conversation(
                (
                    tts_prompt(f"{word} cat"),  # as instruct-build writes it
                    Message("assistant", (spoken(f"{word} cat"),)),
                ),
                "tts",
                f"r{i}",
            )
        )
    write_conversations(run / "data/chain.jsonl.gz", chain, CODEBOOK, 0)
    write_conversations(run / "data/tts.jsonl.gz", read, CODEBOOK, 0)
    chats = [{"question": f"one {word}", "answer": f"two {word}"} for word in PITCHES for _ in range(5)]
    (run / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    tiny_vocoder().save_pretrained(run / "vocoder")
    return run


def omni_config(run: Path, **changes) -> OmniConfig:
    """A stage of kind listening on the tones; with kind="speaking", the stage after it. `training` is merged."""
    speaking = changes.get("kind") == "speaking"
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
        "stage": "speaking" if speaking else "listening",
        "model": "omni_llm" if speaking else "text_llm",
        "out": "omni" if speaking else "omni_llm",
        "run": run,
        "block_size": 96,
        "data": [Source("data/chain.jsonl.gz")] + ([Source("data/tts.jsonl.gz")] if speaking else []),
        "encoder_layer": 1,
        "template": "plain",
        "instructions": {"answer": "", "transcribe": "one", "say": "two"},
        "adaptor": ADAPTOR,
        "decoder": DECODER,
        "trainable": ["decoder"] if speaking else ["adaptor", "llm"],
        "dev_documents": 3,
        "samples": 1,
    }
    return OmniConfig(**{**fields, **changes, "training": training})
