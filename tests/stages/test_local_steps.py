"""Local SGD: processes learn alone, and average weights and the optimizer's moments; killed and resumed the same."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_run import make_run, stage_config

from stages.callbacks import local_steps
from stages.callbacks.checkpoints import damage
from stages.config import StageConfig
from stages.train import train

ROOT = Path(__file__).parents[2]
EVERY, STEPS = 4, 12
TRAINING = {"max_steps": STEPS, "learning_rate": 2e-3, "save_steps": 8, "eval_steps": 12, "logging_steps": 1}

# Each process writes what it knows before and after it averages, at each average
START_SEEN = """
import os, torch
from stages import train
from stages.callbacks import local_steps
average = local_steps.average
def seen(tensors, count=[0]):
    tensors = list(tensors)
    before = [tensor.clone() for tensor in tensors]
    average(tensors)
    count[0] += 1
    torch.save((before, tensors), f"{os.environ['SEEN']}/{count[0]}.{os.environ['RANK']}.pt")
local_steps.average = seen
train.main()
assert not torch.distributed.is_initialized()
"""
START = """
import torch
from stages.train import main
main()
assert not torch.distributed.is_initialized()  # else the process may abort at its exit, after all the work
"""


def local(run: Path, out: str) -> StageConfig:
    each = {"per_device_train_batch_size": 1, "use_cpu": True}
    return stage_config(run, out=out, local_steps=EVERY, training={**TRAINING, **each})


def processes(config: StageConfig, seen: Path | None = None) -> str:
    """Run a stage by two processes."""
    file = config.run / f"{config.out}.yaml"
    given = {name: value for name, value in dataclasses.asdict(config).items() if value is not None}
    file.write_text(yaml.safe_dump({**given, "run": str(config.run)}))
    program = config.run / "start.py"
    program.write_text(START_SEEN if seen else START)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(program), str(file)]
    done = subprocess.run(
        [sys.executable, "-m", *launcher],
        cwd=ROOT,
        env={**environment, "SEEN": str(seen)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder, a stage of two processes in it, and what they averaged in `seen`."""
    run = make_run(tmp_path_factory.mktemp("local"))
    (run / "seen").mkdir()
    processes(local(run, "stage1"), run / "seen")
    return run


def averages(run: Path, number: int) -> list[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    return [torch.load(run / "seen" / f"{number}.{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_weights_and_moments_become_the_mean_of_what_each_has_learned(undisturbed: Path) -> None:
    for number in range(1, STEPS // EVERY + 1):
        (first, after), (second, also) = averages(undisturbed, number)
        assert len(first) == len(after) and len(first) % 3 == 0  # a weight and two moments each
        differ = [not torch.equal(a, b) for a, b in zip(first, second)]
        assert sum(differ) > len(differ) / 2  # no gradients were exchanged
        for a, b, mean, same in zip(first, second, after, also):
            assert torch.equal(mean, same)
            torch.testing.assert_close(mean, (a + b) / 2)


def test_processes_average_every_so_many_steps_and_the_result_is_the_last_average(undisturbed: Path) -> None:
    assert len(list((undisturbed / "seen").iterdir())) == 2 * STEPS // EVERY
    (_, last), _ = averages(undisturbed, STEPS // EVERY)
    finished = load_file(undisturbed / "stage1" / "model.safetensors")
    kept = {tuple(weight.shape): [] for weight in finished.values()}
    for weight in last[::3]:
        kept[tuple(weight.shape)].append(weight)
    for name, weight in finished.items():
        assert any(torch.equal(weight, one) for one in kept[tuple(weight.shape)]), name


def test_killed_and_resumed_it_ends_with_the_same_weights(undisturbed: Path) -> None:
    shutil.copytree(undisturbed / "stage1", undisturbed / "resumed")
    for file in (undisturbed / "resumed").iterdir():
        if file.name != "checkpoint-8" and not file.name.startswith("tokens"):
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    assert damage(undisturbed / "resumed" / "checkpoint-8") is None
    processes(local(undisturbed, "resumed"))
    whole, resumed = (load_file(undisturbed / name / "model.safetensors") for name in ("stage1", "resumed"))
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())


def test_buckets_hold_one_type_and_no_more_than_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_steps, "BUCKET", 32)
    sizes = [(4, torch.float32), (4, torch.float32), (1, torch.float32), (20, torch.float32), (2, torch.bfloat16)]
    given = [torch.zeros(size, dtype=dtype) for size, dtype in sizes]
    found = list(local_steps.buckets(iter(given)))
    assert [[len(tensor) for tensor in bucket] for bucket in found] == [[4, 4], [1], [20], [2]]
    assert all(a is b for a, b in zip(given, [tensor for bucket in found for tensor in bucket], strict=True))


def test_one_process_is_not_changed_by_local_steps(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    alone = train(dataclasses.replace(local(run, "alone"), local_steps=1, threads=1))
    same = train(dataclasses.replace(local(run, "same"), threads=1))
    expected, found = load_file(alone / "model.safetensors"), load_file(same / "model.safetensors")
    assert all(torch.equal(weight, found[name]) for name, weight in expected.items())


@pytest.mark.parametrize("name", ["deepspeed", "fsdp"])
def test_sharded_weights_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"local_steps 4 averages whole weights, and training.{name} divides them"):
        stage_config(tmp_path, local_steps=4, training={**TRAINING, name: "zero2" if name == "deepspeed" else True})
