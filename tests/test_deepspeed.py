"""Two processes on CPU under DeepSpeed (gloo) train what one process trains, and write the same plain folder."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from tiny_run import make_run, stage_config
from transformers import AutoModelForCausalLM

from speechgpt.checkpoint import CheckpointFacts
from stages.config import Lora, Source, StageConfig
from stages.train import train

ROOT = Path(__file__).parents[1]
pytest.importorskip("deepspeed")

# `python -m stages.train`, without the minute in which DeepSpeed compiles its all-reduce in shared memory: gloo does it
START = """
import deepspeed.ops
deepspeed.ops.__compatible_ops__ = {}
from stages.train import main
main()
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A tiny run folder, and stage 1 trained in it by one process at a global batch of 4."""
    run = make_run(tmp_path_factory.mktemp("built"))
    train(stage_config(run, training={"per_device_train_batch_size": 4, "save_steps": 2, "eval_steps": 4}))
    return run


def two_processes(config: StageConfig) -> subprocess.CompletedProcess:
    """Start a stage as on a cluster: torchrun, its config in a yaml file."""
    file = config.run / f"{config.out}.yaml"
    given = {name: value for name, value in dataclasses.asdict(config).items() if value is not None}
    file.write_text(yaml.safe_dump({**given, "run": str(config.run)}))
    start = config.run / "start.py"
    start.write_text(START)
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
                   "HF_HUB_OFFLINE": "1"}  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.run(
        [*command, str(start), str(file)], cwd=ROOT, env=environment, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip


def curve(folder: Path, name: str = "loss") -> dict[int, float]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {record["step"]: record[name] for record in records if name in record}


def sharded(run: Path, sharding: str, **changes) -> StageConfig:
    return stage_config(run, **changes, training={"deepspeed": sharding, "save_steps": 2, "eval_steps": 4})


def check_same(alone: Path, together: Path) -> None:
    assert curve(together) == pytest.approx(curve(alone), abs=1e-3)
    assert len(curve(together)) == 4
    assert curve(together, "dev_units_loss") == pytest.approx(curve(alone, "dev_units_loss"), abs=1e-3)
    expected, found = load_file(alone / "model.safetensors"), load_file(together / "model.safetensors")
    assert expected.keys() == found.keys()
    worst = max((found[name].float() - expected[name]).abs().max().item() for name in expected)
    assert worst < 2e-3, worst  # Adam's first steps turn rounding into steps of the learning rate, 1e-2
    assert CheckpointFacts.load(together).codebook == CheckpointFacts.load(alone).codebook
    assert type(AutoModelForCausalLM.from_pretrained(together)).__name__ == "LlamaForCausalLM"


def test_zero2_on_two_processes_equals_one_process(built) -> None:
    done = two_processes(sharded(built, "zero2", out="zero2"))
    assert done.returncode == 0, done.stderr[-4000:]
    check_same(built / "stage1", built / "zero2")
    assert done.stdout.count("longer than a block") == 2  # two sources, told once
    shards = {path.name for path in (built / "zero2/checkpoint-4/global_step4").iterdir()}
    assert {f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1)} <= {
        n.removeprefix("bf16_") for n in shards
    }


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "zero1", "zero3"])
def test_other_shardings_do_too(built, sharding: str) -> None:
    config = sharded(built, sharding, out=sharding)
    if sharding == "ddp":
        del config.training["deepspeed"]
    done = two_processes(config)
    assert done.returncode == 0, done.stderr[-4000:]
    check_same(built / "stage1", built / sharding)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["zero2", "zero3"])
def test_adapters_merge_and_resume_under_sharding(built, sharding: str) -> None:
    out = f"lora_{sharding}"
    lora = {"stage": "stage3", "model": "stage1", "widen": None, "lora": Lora(dropout=0.0),
            "data": [Source("data/chat.jsonl.gz")]}  # fmt: skip
    alone = train(stage_config(built, out=f"{out}_alone", training={"per_device_train_batch_size": 4}, **lora))
    done = two_processes(sharded(built, sharding, out=out, **lora))
    assert done.returncode == 0, done.stderr[-4000:]
    assert curve(built / out) == pytest.approx(curve(alone), abs=1e-3)
    finished = load_file(built / out / "model.safetensors")
    assert finished.keys() == load_file(alone / "model.safetensors").keys()
    for name in ("speechgpt.json", "config.json", "model.safetensors"):
        (built / out / name).unlink()
    shutil.rmtree(built / out / "checkpoint-4")
    done = two_processes(sharded(built, sharding, out=out, **lora))
    assert done.returncode == 0, done.stderr[-4000:]
    again = load_file(built / out / "model.safetensors")
    assert max((again[name] - weight).abs().max().item() for name, weight in finished.items()) < 1e-5
