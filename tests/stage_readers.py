"""Readers of what stages, checkpoints and adapters hold, for tests/whole/test_damaged_files.py."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import yaml
from damaged_files import Reader
from safetensors.numpy import save_file
from transformers import TrainerControl, TrainerState, TrainingArguments

from instruct_data.describe.description import find_sets
from speechgpt.checkpoint import FILE, CheckpointFacts
from speechgpt.language_models.adapters import ADAPTER_CONFIG, REFERENCE, find_base, set_base, shape_of
from stages.callbacks.checkpoints import COMPLETE, mark_complete, newest_checkpoint, processes_of, read_complete
from stages.callbacks.log import Log, append, read_log
from stages.config import StageConfig
from stages.packing.tokens import FACTS, _mapped, _write
from stages.place import RESOLVED, read_resolved
from stages.planning.plan import sharding
from stages.system import Documents
from stages.train import _wrong_names
from units.codebook import Codebook
from units.runtime.files.yaml_files import read_yaml

CODEBOOK = Codebook("tiny", "mfcc", 0, 10, 50.0, "utterance", "0123abcd")
STAGE = {"stage": "s", "model": "m", "out": "o", "data": [{"path": "u"}], "training": {"max_steps": 3}}
LLAMA = {"model_type": "llama", "vocab_size": 20, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}


def write_model(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    save_file({"a": np.arange(4.0)}, folder / "model.safetensors")


def write_adapter(folder: Path) -> None:
    write_model(folder / "base_model")
    adapter = folder / "adapter"
    adapter.mkdir(exist_ok=True)
    (adapter / ADAPTER_CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    set_base(adapter, str(folder / "base_model"), adapter)


def write_log(folder: Path) -> None:
    for step in (1, 2):
        append(folder / "log.jsonl", {"step": step, "loss": 2.0, "seconds": 1.5, "reply": "a\u2028b"})


def resume_log(folder: Path) -> None:
    """As after a resume, which writes the log again."""
    state = TrainerState(global_step=2, is_world_process_zero=True)
    Log(folder / "log.jsonl").on_train_begin(TrainingArguments(str(folder)), state, TrainerControl())


def write_checkpoint(folder: Path) -> None:
    checkpoint = folder / "checkpoint-7"
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    mark_complete(checkpoint, 2)


def resume_checkpoint(folder: Path) -> object:
    """A damaged checkpoint is passed over, in words."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        found = newest_checkpoint(folder, delete=False)
    assert found or "checkpoint-7 is damaged" in printed.getvalue()
    return found and processes_of(found)


def write_cache(folder: Path) -> None:
    documents = Documents("asr", np.arange(6, dtype=np.int32), np.ones(6, bool), np.array([2, 4]))
    (folder / "cache").mkdir(exist_ok=True)
    _write(folder / "cache", iter([documents]))


def read_cache(folder: Path) -> object:
    """A damaged cache is made again."""
    with contextlib.redirect_stdout(io.StringIO()):
        found = _mapped(folder / "cache")
    return found is None or [found.document(i) for i in range(len(found))]


def write_build(folder: Path) -> None:
    (folder / "chain_dev.jsonl").write_text("")
    facts = {"counts": {}, "refused": {"chain": {"no_units": 2}}, "codebook": "tiny", "sides": {"chain_dev": "dev"}}
    (folder / "build.json").write_text(json.dumps(facts))


STAGE_READERS = {
    "facts of a checkpoint": Reader(
        FILE,
        lambda f: CheckpointFacts(CODEBOOK, "stage3", 300, "You.", {"kind": "chain"}, {"torch": "2"}).save(f),
        CheckpointFacts.load,
    ),
    "config of a model": Reader("config.json", write_model, shape_of),
    "base of an adapter": Reader(f"adapter/{REFERENCE}", write_adapter, lambda f: find_base(f / "adapter")),
    "config of an adapter": Reader(f"adapter/{ADAPTER_CONFIG}", write_adapter, lambda f: find_base(f / "adapter")),
    "completion file of a checkpoint": Reader(
        f"checkpoint-7/{COMPLETE}", write_checkpoint, lambda f: read_complete(f / "checkpoint-7")
    ),
    "completion file, on resuming": Reader(f"checkpoint-7/{COMPLETE}", write_checkpoint, resume_checkpoint),
    "facts of cached tokens": Reader(f"cache/{FACTS}", write_cache, read_cache),
    "log of a stage": Reader("log.jsonl", write_log, lambda f: read_log(f / "log.jsonl")),
    "log of a stage, on resuming": Reader("log.jsonl", write_log, resume_log),
    "resolved config": Reader(RESOLVED, lambda f: (f / RESOLVED).write_text(yaml.safe_dump(STAGE)), read_resolved),
    "config of a stage": Reader(
        "stage.yaml",
        lambda f: (f / "stage.yaml").write_text(yaml.safe_dump(STAGE)),
        lambda f: _wrong_names(f / "stage.yaml", [], StageConfig),
    ),
    "settings": Reader(
        "a.yaml", lambda f: (f / "a.yaml").write_text("a: 1\nb: {c: 2}\n"), lambda f: read_yaml(f / "a.yaml")
    ),
    "settings of DeepSpeed": Reader(
        "zero.json",
        lambda f: (f / "zero.json").write_text(json.dumps({"zero_optimization": {"stage": 2}})),
        lambda f: sharding(str(f / "zero.json")),
    ),
    "facts of built sets": Reader("build.json", write_build, find_sets),
}
