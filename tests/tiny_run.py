"""A run folder small enough to train every stage in seconds: text LLM, unit encoder, unit set, conversations."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from instruct_data.build.records import write_conversations
from speechgpt.dialogue import Conversation, Message
from stages.config import Source, StageConfig, Widening
from stages.start_models import text_llm
from stages.unit_system.opened import UnitOpened
from units.codebook import Codebook, Units
from units.dataset.unit_set import COMPLETION_FILE, UnitRecord, shard_path, write_shard
from units.encoder.kmeans import save_centres

K = 10
CODEBOOK = Codebook("tiny", "mfcc", 0, K, 50.0, "utterance", "0123abcd")
FOREIGN = Codebook("foreign", "mfcc", 0, K, 50.0, "utterance", "feedbeef")
WORDS = "red blue green one two three cat dog is the my of".split()
TINY = text_llm.TinyLlama(vocab_size=300, width=32, layers=2, heads=2, feed_forward=48, context=128)


def sentence(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(2, 8)))


def spoken(draw: random.Random) -> tuple[int, ...]:
    return tuple(draw.choices(range(K), k=draw.randint(3, 20)))


def write_unit_set(folder: Path, codebook: Codebook, count: int = 40, seed: int = 0) -> Path:
    draw = random.Random(seed)
    records = [
        UnitRecord(f"u{i}", Units(ids := spoken(draw), (1,) * len(ids), codebook), 320 * len(ids) + 80)
        for i in range(count)
    ]
    write_shard(shard_path(folder, 0), records, codebook)
    facts = {"codebook": json.loads(codebook.to_json()), "utterances": count, "seconds": 1.0, "shards": 1, "refused": 0}
    (folder / COMPLETION_FILE).write_text(json.dumps(facts))
    return folder


def chats(count: int = 40, seed: int = 0) -> list[Conversation]:
    """Half spoken questions (task asr), half written ones (task chat)."""
    draw, found = random.Random(seed), []
    for i in range(count):
        question = spoken(draw) if i % 2 else sentence(draw)
        turns = (Message("human", (question,)), Message("assistant", (sentence(draw),)))
        found.append(Conversation(turns, "asr" if i % 2 else "chat", f"c{i}"))
    return found


def make_run(run: Path) -> Path:
    """Everything that stage 1 to 3 need, at K units and a context of 128 tokens."""
    draw = random.Random(1)
    (run / "corpus").mkdir(parents=True)
    (run / "corpus/text.txt").write_text("\n".join(sentence(draw) for _ in range(60)) + "\n")
    text_llm.main(run / "corpus/text.txt", run / "text_llm", TINY)
    (run / "unit_encoder").mkdir()
    (run / "unit_encoder/codebook.json").write_text(CODEBOOK.to_json())
    save_centres(run / "unit_encoder/centres.safetensors", torch.randn(K, 6, generator=torch.manual_seed(0)))
    write_unit_set(run / "units/train", CODEBOOK)
    write_conversations(run / "data/chat.jsonl.gz", chats(), CODEBOOK, 0)
    return run


def stage_config(run: Path, **changes) -> StageConfig:
    """Stage 1 of the tiny run, with other fields where named; `training` is merged."""
    training = {
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": 100,
        "disable_tqdm": True,
        **changes.pop("training", {}),
    }
    fields = {
        "stage": "stage1",
        "model": "text_llm",
        "out": "stage1",
        "run": run,
        "block_size": 64,
        "widen": Widening("unit_encoder"),
        "data": [Source("units/train"), Source("corpus/text.txt")],
    }
    return StageConfig(**{**fields, **changes, "training": training})


def opened(config: StageConfig, tokenizer: PreTrainedTokenizerBase, codebook: Codebook | None = CODEBOOK) -> UnitOpened:
    """SpeechGPT at the start of a stage, without its model: enough to tokenise and to pack."""
    return UnitOpened(config, None, tokenizer, codebook)
