"""Several processes on CPU under DeepSpeed or FSDP (gloo), on one machine or as two, train what one process trains, and
write the same plain folder; any number of them goes on from a checkpoint of another number."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_pairs import pairs
from tiny_run import CODEBOOK, make_run, stage_config
from transformers import AutoModelForCausalLM

from instruct_data.build.preference_sets import write_preferences
from speechgpt.checkpoint import CheckpointFacts
from stages.callbacks.checkpoints import checkpoints, damage, processes_of
from stages.config import Lora, Rows, Source, StageConfig, Widening
from stages.train import train

ROOT = Path(__file__).parents[2]
pytest.importorskip("deepspeed")

# `python -m stages.train`, without the minute in which DeepSpeed compiles its all-reduce in shared memory: gloo does it
START = """
import deepspeed.ops
deepspeed.ops.__compatible_ops__ = {}
from stages.train import main
main()
"""

# On CPUs accelerate leaves FSDP out and keeps whole copies; if it takes them for GPUs it shards them, on gloo
START_FSDP = """
from accelerate.state import DistributedType, PartialState
from stages import stage, train

def as_on_gpus(config, made=stage.training_arguments):
    arguments = made(config)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return arguments

stage.training_arguments = as_on_gpus
train.main()
"""

# Each process has another run folder, as without a shared file system
START_APART = """
import os, sys
from stages.callbacks import checkpoints
from stages.train import main
checkpoints.VISIBLE = 0
main([sys.argv[1], "--run", os.path.join(os.path.dirname(sys.argv[1]), "machine" + os.environ["RANK"])])
"""

# The first process prepares data for longer than processes that train wait for one another
START_WAITING = """
import datetime, os, time
import deepspeed.ops, torch
deepspeed.ops.__compatible_ops__ = {}
torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=20))
from stages import stage, train
load = stage.load_blocks
def slowly(*args, **named):
    time.sleep(0 if int(os.environ["RANK"]) else 30)
    return load(*args, **named)
stage.load_blocks = slowly
train.main()
"""

LIMIT = 1800  # seconds for one run, which takes 30 on an idle machine: two processes import torch, beside other work
STEPS = 20
PLAN = {"max_steps": STEPS, "learning_rate": 2e-3, "save_steps": 10, "eval_steps": 10, "lr_scheduler_type": "cosine"}


def planned(run: Path, sharding: str | None, each: int = 2, training: dict | None = None, **changes) -> StageConfig:
    """A stage of a global batch of 4, `each` blocks of it a pass."""
    sharded = {"fsdp": True} if sharding == "fsdp" else {"deepspeed": sharding} if sharding else {}
    each_of = {"per_device_train_batch_size": each}
    return stage_config(run, batch=4, training={**PLAN, **sharded, **each_of, **(training or {})}, **changes)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A tiny run folder, and stage 1 trained in it by one process, at once."""
    run = make_run(tmp_path_factory.mktemp("built"))
    train(planned(run, None, each=4))
    return run


def start(config: StageConfig, *launcher: str, text: str | None = None) -> subprocess.Popen:
    """Start a stage as on a cluster: torchrun, its config in a yaml file. text: of the program."""
    file = config.run / f"{config.out}.yaml"
    given = {name: value for name, value in dataclasses.asdict(config).items() if value is not None}
    file.write_text(yaml.safe_dump({**given, "run": str(config.run)}))
    program = config.run / "start.py"
    program.write_text(text or (START_FSDP if config.training.get("fsdp") else START))
    environment = {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, "-m", "torch.distributed.run", *launcher, str(program), str(file)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end(*agents: subprocess.Popen) -> None:
    """End agents that still run. They end their workers at SIGTERM; if killed, they would leave them to wait."""
    for agent in agents:
        agent.terminate()
    for agent in agents:
        with contextlib.suppress(subprocess.TimeoutExpired):
            agent.communicate(timeout=60)
        agent.kill()


def output(agent: subprocess.Popen) -> tuple[str, str]:
    """What an agent printed, and its errors, when it has ended."""
    try:
        return agent.communicate(timeout=LIMIT)
    finally:
        end(agent)


def ended(*agents: subprocess.Popen) -> str:
    """What was printed when all have ended well."""
    try:
        with (
            ThreadPoolExecutor() as readers
        ):  # in parallel: an agent whose output is not read would block, and all others with it
            printed = list(readers.map(lambda agent: agent.communicate(timeout=LIMIT), agents))
        for agent, (_, errors) in zip(agents, printed):
            assert agent.returncode == 0, errors[-4000:]
            assert errors.count("is deprecated") < 10, errors[:4000]  # a warning once is enough
    finally:
        end(*agents)
    return "".join(out for out, _ in printed)


def processes(config: StageConfig, count: int = 2, text: str | None = None) -> str:
    """Run a stage on this machine by some processes."""
    return ended(start(config, "--standalone", "--nproc_per_node", str(count), text=text))


def two_machines(config: StageConfig) -> str:
    """Run a stage by two torchrun agents that know each other by address only, one process each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = ["--nnodes", "2", "--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", str(port)]
    return ended(*(start(config, *place, "--node_rank", str(rank)) for rank in (0, 1)))


def curve(folder: Path, name: str = "loss") -> dict[int, float]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {record["step"]: record[name] for record in records if name in record}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def check_same(alone: Path, together: Path) -> None:
    assert curve(together) == pytest.approx(curve(alone), abs=1e-4)
    assert len(curve(together)) == len(curve(alone)) == STEPS
    assert curve(together, "dev_units_loss") == pytest.approx(curve(alone, "dev_units_loss"), abs=2e-4)  # 4 digits
    expected, found = load_file(alone / "model.safetensors"), load_file(together / "model.safetensors")
    assert expected.keys() == found.keys()
    worst = max((found[name].float() - expected[name]).abs().max().item() for name in expected)
    assert worst < 2e-3, worst  # Adam's first steps turn rounding into steps of the learning rate
    assert CheckpointFacts.load(together).codebook == CheckpointFacts.load(alone).codebook
    assert type(AutoModelForCausalLM.from_pretrained(together)).__name__ == "LlamaForCausalLM"


def test_two_machines_under_zero2_equal_one_process(built) -> None:
    printed = two_machines(planned(built, "zero2", out="machines"))
    check_same(built / "stage1", built / "machines")
    assert printed.count("longer than a block") == 2  # two sources, printed once
    shards = {path.name for path in (built / "machines/checkpoint-20/global_step20").iterdir()}
    assert {f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1)} <= {
        n.removeprefix("bf16_") for n in shards
    }


@pytest.mark.slow
def test_two_machines_under_zero3_equal_one_process(built) -> None:
    two_machines(planned(built, "zero3", out="machines3"))
    check_same(built / "stage1", built / "machines3")


@pytest.mark.slow
@pytest.mark.parametrize("sharding", [None, "fsdp", "zero1", "zero2", "zero3", "zero3_offload"])
def test_two_processes_equal_one(built, sharding: str | None) -> None:
    processes(planned(built, sharding, each=1, out=f"two_{sharding}"))  # and two passes a step
    check_same(built / "stage1", built / f"two_{sharding}")
    in_shards = any((built / f"two_{sharding}/checkpoint-20").glob("pytorch_model_fsdp*"))
    assert in_shards == (sharding == "fsdp")
    samples = [json.loads(line) for line in (built / f"two_{sharding}/samples.jsonl").read_text().splitlines()]
    assert {sample["step"] for sample in samples} == {10, 20}


@pytest.mark.slow
@pytest.mark.parametrize("init", ["mean", "centres"])
def test_sharded_matrices_are_widened_whole(built, init: str) -> None:
    still = {"max_steps": 1, "eval_steps": 1, "learning_rate": 0.0}
    changes = {"widen": Widening("unit_encoder", init), "training": still}
    alone = weights(train(planned(built, None, each=4, out=f"{init}_alone", **changes)))
    processes(planned(built, "zero3", out=f"{init}_zero3", **changes))
    found = weights(built / f"{init}_zero3")
    for name, expected in alone.items():
        if init == "centres" or "embed" not in name:  # the spread of new rows around the mean is drawn after sharding
            torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", [None, "fsdp", "zero2", "zero3"])
def test_embeddings_learn_first_under_sharding(built, sharding: str | None) -> None:
    first = {"trainable": "embeddings_then_all", "embeddings_steps": 10}
    alone = train(planned(built, None, each=4, out="first_alone", **first))
    processes(planned(built, sharding, out=f"first_{sharding}", **first))
    check_same(alone, built / f"first_{sharding}")
    assert curve(alone) != pytest.approx(curve(built / "stage1"), abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sharding", "words"), [(None, "keep"), ("zero1", "keep"), ("zero2", "keep"), ("fsdp", "learn"), ("zero3", "learn")]
)
def test_rows_learn_apart_under_sharding(built, sharding: str | None, words: Literal["learn", "keep"]) -> None:
    apart = {"rows": Rows(5.0, words)}
    alone = train(planned(built, None, each=4, out=f"apart_{words}", **apart))
    processes(planned(built, sharding, out=f"apart_{sharding}", **apart))
    check_same(alone, built / f"apart_{sharding}")
    assert curve(alone) != pytest.approx(curve(built / "stage1"), abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", [None, "zero2", "zero3"])
def test_preferences_of_two_processes_equal_those_of_one(built, sharding: str | None) -> None:
    write_preferences(built / "pairs.jsonl.gz", pairs(), CODEBOOK)
    pairwise = {"kind": "preference", "model": "stage1", "widen": None, "data": [Source("pairs.jsonl.gz")]}
    changes = {**pairwise, "stage": "stage4", "block_size": 128, "training": {"learning_rate": 1e-3}}
    alone = train(planned(built, None, each=4, out="preferred_alone", **changes))
    processes(planned(built, sharding, each=1, out=f"preferred_{sharding}", **changes))
    together = built / f"preferred_{sharding}"
    for name in ("loss", "dev_loss", "dev_margin", "dev_kl"):
        assert curve(together, name) == pytest.approx(curve(alone, name), abs=2e-3)
    assert curve(alone)[STEPS] < curve(alone)[1]
    found = weights(together)
    assert max((found[name] - weight).abs().max().item() for name, weight in weights(alone).items()) < 2e-3


@pytest.mark.slow
def test_embeddings_alone_learn_in_two_processes(built) -> None:
    alone = train(planned(built, None, each=4, out="rows_alone", trainable="embeddings"))
    processes(planned(built, None, out="rows", trainable="embeddings"))
    check_same(alone, built / "rows")


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["fsdp", "zero2", "zero3"])
def test_half_precision_is_near(built, sharding: str) -> None:
    processes(planned(built, sharding, out=f"half_{sharding}", training={"bf16": True}))
    assert curve(built / f"half_{sharding}") == pytest.approx(curve(built / "stage1"), abs=0.05)
    kept = torch.float32 if sharding == "fsdp" else torch.bfloat16  # FSDP keeps whole weights, and computes in half
    assert {weight.dtype for weight in weights(built / f"half_{sharding}").values()} == {kept}
    AutoModelForCausalLM.from_pretrained(built / f"half_{sharding}")


@pytest.mark.slow
def test_a_run_folder_that_is_not_shared_is_refused_before_anything_is_deleted(built) -> None:
    parts = [built / f"machine{rank}/apart/checkpoint-10/shard.pt" for rank in (0, 1)]
    for part in parts:
        part.parent.mkdir(parents=True)
        part.touch()
    agent = start(planned(built, None, out="apart"), "--standalone", "--nproc_per_node", "2", text=START_APART)
    _, errors = output(agent)
    assert agent.returncode != 0 and all(part.exists() for part in parts)
    for word in ("another one", "this one"):
        assert f"a file of the first one is missing for {word}. The run folder must be" in errors, errors[-4000:]
    assert [path.name for path in parts[0].parents[1].iterdir()] == ["checkpoint-10"]


@pytest.mark.slow
@pytest.mark.parametrize("sharding", [None, "zero3"])
def test_the_others_wait_for_the_first_as_long_as_its_work_takes(built, sharding: str | None) -> None:
    config = planned(built, sharding, out=f"waits_{sharding}", training={"max_steps": 2})
    processes(config, text=START_WAITING)
    assert (built / config.out / "speechgpt.json").exists()


def unfinish(folder: Path) -> None:
    """As if it had been killed after its tenth step."""
    for path in folder.iterdir():
        if path.is_file() and path.name not in ("log.jsonl", "stage.yaml"):
            path.unlink()
    shutil.rmtree(folder / "checkpoint-20")


@pytest.mark.slow
@pytest.mark.parametrize("sharding", [None, "fsdp", "zero2", "zero3"])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on(built, sharding: str | None, before: int, after: int) -> None:
    config = planned(built, sharding, out=f"from{before}to{after}_{sharding}", training={"weight_decay": 0.1})
    folder = built / config.out
    processes(config, before)
    unfinish(folder)
    printed = processes(config, after)
    if sharding in ("zero2", "zero3"):  # FSDP's checkpoints fit any number
        assert f"checkpoint-10 is of {before} processes, resuming with {after}" in printed
    alone = train(planned(built, None, each=4, out="decayed", training={"weight_decay": 0.1}))
    check_same(alone, folder)


@pytest.mark.slow
def test_on_sigterm_all_processes_save_the_same_step(built) -> None:
    longer = {"max_steps": 80, "save_steps": 1000}
    alone = train(planned(built, None, each=4, out="longer", training=longer))
    config = planned(built, "zero2", out="stopped", training=longer)
    folder = built / "stopped"
    agent = start(config, "--standalone", "--nproc_per_node", "2")
    last = time.monotonic() + LIMIT
    while not ((folder / "log.jsonl").exists() and len(curve(folder)) > 3) and time.monotonic() < last:
        time.sleep(0.01)
    agent.send_signal(signal.SIGTERM)
    out, errors = output(agent)
    assert agent.returncode != 0 and "all saved; the same command continues it" in out, errors[-4000:]
    (saved,) = checkpoints(folder)
    assert damage(saved) is None and processes_of(saved) == 2
    processes(config)
    assert curve(folder) == pytest.approx(curve(alone), abs=1e-4) and len(curve(folder)) == 80


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sharding", "half"),
    [(None, False), ("fsdp", False), ("zero2", False), ("zero3", False), ("zero2", True), ("zero3", True)],
)
def test_adapters_merge_and_resume_under_sharding(built, sharding: str | None, half: bool) -> None:
    out, near = f"lora_{sharding}_{half}", 0.05 if half else 1e-3
    training = {"bf16": True, "gradient_checkpointing": True} if half else {}  # as the presets of 7b and 13b
    lora = {
        "stage": "stage3",
        "model": "stage1",
        "widen": None,
        "lora": Lora(dropout=0.0),
        "data": [Source("data/chat.jsonl.gz")],
        "training": training,
    }
    alone = train(planned(built, None, each=4, out=f"{out}_alone", **lora))
    processes(planned(built, sharding, out=out, **lora))
    assert curve(built / out) == pytest.approx(curve(alone), abs=near)
    finished = load_file(built / out / "model.safetensors")
    assert finished.keys() == load_file(alone / "model.safetensors").keys()
    unfinish(built / out)
    processes(planned(built, sharding, out=out, **lora))
    again = load_file(built / out / "model.safetensors")
    assert max((again[name] - weight).abs().max().item() for name, weight in finished.items()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("sharding", [None, "fsdp", "zero2", "zero3"])
def test_adapters_after_widening_under_sharding(built, sharding: str | None, merge: bool) -> None:
    """The new rows are frozen beside adapters, and must be written as they were in training."""
    changes = {"lora": Lora(dropout=0.0, merge=merge), "widen": Widening("unit_encoder", "centres")}
    alone = train(planned(built, None, each=4, out=f"wide_alone_{merge}", **changes))
    printed = processes(planned(built, sharding, out=f"wide_{sharding}_{merge}", **changes))
    assert "documents: loss" in printed  # the written folder scored as the trained model did
    together = built / f"wide_{sharding}_{merge}"
    apart = sharding == "zero3"  # the first values of adapters are drawn after other random numbers than in one process
    assert curve(together) == pytest.approx(curve(alone), abs=0.05 if apart else 1e-3)
    for folder in (alone, together):  # as a user opens them
        assert type(AutoModelForCausalLM.from_pretrained(folder)).__name__ == "LlamaForCausalLM"
    where = "." if merge else "base"
    expected, found = weights(alone / where), weights(together / where)
    assert expected.keys() == found.keys()
    for name, weight in expected.items():
        if not (apart and merge and ("q_proj" in name or "v_proj" in name)):
            assert (found[name] - weight).abs().max().item() < 2e-3, name
