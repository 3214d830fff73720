"""Stages that were killed, stopped, ran out of disk or found a damaged checkpoint end as the undisturbed one does."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_run import make_run, stage_config
from transformers import Trainer, TrainerCallback, TrainerControl

from speechgpt.checkpoint import CheckpointFacts
from stages import stage
from stages.callbacks.checkpoints import (
    COMPLETE,
    STOPPED,
    CheckpointError,
    Checkpoints,
    checkpoints,
    damage,
    newest_checkpoint,
)
from stages.callbacks.log import read_log
from stages.config import StageConfig
from stages.packing.blocks import PackedBlocks
from stages.place import RESOLVED
from stages.train import train

ROOT = Path(__file__).parents[2]
STEPS = 40


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A run folder with an undisturbed stage in it, `whole`."""
    run = make_run(tmp_path_factory.mktemp("built"))
    train(planned(run, "whole"))
    return run


def planned(run: Path, out: str, **training) -> StageConfig:
    plan = {"max_steps": STEPS, "save_steps": 7, "eval_steps": 20, "lr_scheduler_type": "cosine", "warmup_steps": 5}
    return stage_config(run, out=out, training={**plan, **training})


def started(config: StageConfig) -> subprocess.Popen:
    """A stage in a separate process, as from the command line."""
    file = config.run / f"{config.out}.yaml"
    given = {name: value for name, value in dataclasses.asdict(config).items() if value is not None}
    file.write_text(yaml.safe_dump({**given, "run": str(config.run)}))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "stages.train", str(file)],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def steps_logged(out: Path) -> int:
    log = out / "log.jsonl"
    return log.read_text().count('"loss"') if log.exists() else 0


def wait_for(process: subprocess.Popen, ready: Callable[[], bool]) -> None:
    """Wait until something is there; fail with the process's words if it ends before."""
    end = time.monotonic() + 120
    while not ready():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.005)


def check_same(run: Path, out: str) -> None:
    """The curve, without gaps or repetitions, and the weights are those of the undisturbed stage."""
    curves = []
    for folder in (run / "whole", run / out):
        records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        losses = [(record["step"], record["loss"]) for record in records if "loss" in record]
        assert [step for step, _ in losses] == list(range(1, STEPS + 1))
        curves.append([loss for _, loss in losses])
    assert curves[1] == pytest.approx(curves[0], abs=1e-4)
    expected = load_file(run / "whole/model.safetensors")
    for name, weight in load_file(run / out / "model.safetensors").items():
        torch.testing.assert_close(weight, expected[name], atol=1e-5, rtol=0)
    assert CheckpointFacts.load(run / out).stage == "stage1"


def test_killed_in_the_middle(built) -> None:
    config = planned(built, "killed")
    process = started(config)
    wait_for(process, lambda: steps_logged(built / "killed") > 20)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (built / "killed/config.json").exists()
    assert newest_checkpoint(built / "killed") is not None
    train(config)
    check_same(built, "killed")


def test_on_sigterm_it_saves_first(built, capsys) -> None:
    config = planned(built, "stopped", save_steps=1000)
    process = started(config)
    wait_for(process, lambda: steps_logged(built / "stopped") > 10)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == STOPPED == 143, said
    (saved,) = checkpoints(built / "stopped")
    step = int(saved.name.split("-")[1])
    assert 10 < step < STEPS and damage(saved) is None
    assert f"stopped at step {step} of {STEPS}, all saved; the same command continues it" in said
    train(config)
    check_same(built, "stopped")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_any_moment_and_again(built, seed: int) -> None:
    """Kills fall into starting, stepping and saving alike: a checkpoint is written after every second step."""
    draw, out = random.Random(seed), f"often{seed}"
    config = planned(built, out, save_steps=2)
    for _ in range(8):
        process = started(config)
        time.sleep(draw.uniform(4, 14))  # seconds: it takes about half of that to start
        process.kill()
        process.communicate()
        if (built / out / "config.json").exists():
            break
    train(config)
    check_same(built, out)


class At(TrainerCallback):
    """Does something at the end of a step."""

    def __init__(self, step: int, does: Callable[[], None]) -> None:
        self.step, self.does = step, does

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            self.does()


def train_with(callback: TrainerCallback, config: StageConfig, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        usual = stage.StageTrainer
        patch.setattr(
            stage, "StageTrainer", lambda *a, callbacks, **k: usual(*a, callbacks=[*callbacks, callback], **k)
        )
        train(config)


def stop() -> None:
    raise KeyboardInterrupt


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def scribble(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"\0" * 8)


@pytest.mark.parametrize(
    ("name", "breaks", "reason"),
    [
        ("optimizer.pt", cut, "optimizer.pt differs from what was written"),
        ("model.safetensors", scribble, "model.safetensors differs from what was written"),
        ("scheduler.pt", Path.unlink, "scheduler.pt is missing"),
        (COMPLETE, Path.unlink, "it is not complete"),
    ],
)
def test_a_broken_newest_checkpoint_falls_back_saying_so(
    built, monkeypatch, capsys, name: str, breaks: Callable[[Path], None], reason: str
) -> None:
    config = planned(built, f"broken_{name}")
    out = built / config.out
    with pytest.raises(KeyboardInterrupt):
        train_with(At(23, stop), config, monkeypatch)
    assert [path.name for path in checkpoints(out)] == ["checkpoint-21", "checkpoint-14"]
    breaks(out / "checkpoint-21" / name)
    train(config)
    assert f"checkpoint-21 is damaged: {reason}; trying checkpoint-14" in capsys.readouterr().out
    check_same(built, config.out)


def test_one_process_need_not_ask_the_device_whether_to_stop(monkeypatch) -> None:
    keeper, state = Checkpoints(), SimpleNamespace(global_step=3, max_steps=9)
    monkeypatch.setattr(torch, "tensor", None)  # on a GPU one would wait for all that is queued
    for asked in (False, True):
        keeper.asked, control = asked, TrainerControl()
        keeper.on_step_end(SimpleNamespace(world_size=1, device="cuda"), state, control)
        assert control.should_save == control.should_training_stop == keeper.stopped == asked


def test_with_no_whole_checkpoint_it_starts_anew(tmp_path, capsys) -> None:
    (tmp_path / "checkpoint-7").mkdir()
    assert newest_checkpoint(tmp_path) is None
    assert "checkpoint-7 is damaged: it is not complete; starting from the beginning" in capsys.readouterr().out


def test_a_full_disk_leaves_the_last_checkpoint_whole(built, monkeypatch) -> None:
    config = planned(built, "full", save_steps=14)
    out, usual = built / "full", resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:  # from here on no file may grow beyond 20 kB: a write fails as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, usual[1]))

    try:
        with pytest.raises(
            CheckpointError, match="checkpoint-28 could not be written.*checkpoint-14 before it is complete"
        ):
            train_with(At(27, fill), config, monkeypatch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert [path.name for path in checkpoints(out)] == ["checkpoint-14"] and damage(out / "checkpoint-14") is None
    train(config)
    check_same(built, "full")


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "make training.per_device_train_batch_size smaller; then run"),
        (torch.distributed.DistBackendError("NCCL error"), "see the error of the first that failed; then run"),
        (OSError(28, "No space left on device"), "If the disk is full, make room; then run the same command"),
    ],
)
def test_a_checkpoint_that_fails_names_the_remedy(built, monkeypatch, error: Exception, remedy: str) -> None:
    def fail(*_) -> None:
        raise error

    monkeypatch.setattr(Trainer, "_save_checkpoint", fail)
    with pytest.raises(CheckpointError, match=f"checkpoint-2 could not be written .*{remedy}"):
        train(planned(built, "unsaved", max_steps=2, save_steps=2))


def test_more_steps_go_on_where_fewer_ended(built, monkeypatch) -> None:
    read: list[tuple[int, int]] = []  # (which blocks, index)
    usual = PackedBlocks.__getitem__
    monkeypatch.setattr(PackedBlocks, "__getitem__", lambda self, i: read.append((id(self), i)) or usual(self, i))
    steady = {"lr_scheduler_type": "constant", "warmup_steps": 0, "eval_steps": 4}
    whole = train(planned(built, "eight", **steady, max_steps=8))
    assert [i for which, i in read if which == read[0][0]] == list(range(16))  # two blocks a step, in their own order
    out = train(planned(built, "longer", **steady, max_steps=4))
    for name in ("speechgpt.json", "config.json", "model.safetensors"):  # all but the checkpoint
        (out / name).unlink()
    read.clear()
    train(planned(built, "longer", **steady, max_steps=8))
    assert [i for which, i in read if which == read[0][0]] == list(range(8, 16))
    losses = [
        [json.loads(line).get("loss") for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (whole, out)
    ]
    assert [x for x in losses[1] if x] == pytest.approx([x for x in losses[0] if x], abs=1e-4)


def test_blocks_made_in_other_processes_come_in_the_same_order(built, monkeypatch) -> None:
    config = planned(built, "workers", dataloader_num_workers=2)
    with pytest.raises(KeyboardInterrupt):
        train_with(At(23, stop), config, monkeypatch)
    train(config)
    check_same(built, "workers")


def test_resuming_under_another_config_reports_what_differs(built, monkeypatch, capsys) -> None:
    config = planned(built, "other")
    with pytest.raises(KeyboardInterrupt):
        train_with(At(9, stop), config, monkeypatch)
    resolved = yaml.safe_load((built / "other" / RESOLVED).read_text())
    assert resolved["block_size"] == 64 and resolved["training"]["max_steps"] == STEPS and resolved["lora"] is None
    with pytest.raises(KeyboardInterrupt):
        train_with(At(9, stop), dataclasses.replace(config, seed=3), monkeypatch)
    assert "seed was 0 in the checkpoints, and is 3 from here on" in capsys.readouterr().out
    shutil.rmtree(built / "other")


def test_a_config_of_release_0_1_0_differs_in_nothing(tmp_path, capsys) -> None:
    config = stage_config(tmp_path, out="old")
    old = {**dataclasses.asdict(config), "run": str(tmp_path)}
    del old["kind"]  # a field that 0.1.0 did not have
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / RESOLVED).write_text(yaml.safe_dump(old))
    stage.save_resolved(config, resuming=True)
    assert capsys.readouterr().out == ""
    assert yaml.safe_load((tmp_path / "old" / RESOLVED).read_text())["kind"] == "units"
    stage.save_resolved(dataclasses.replace(config, kind="chain"), resuming=True)
    assert "kind was units in the checkpoints, and is chain from here on" in capsys.readouterr().out


def test_a_stage_that_diverges_stops_before_it_is_saved(built, monkeypatch) -> None:
    steady = {"lr_scheduler_type": "constant", "warmup_steps": 0, "eval_steps": 8, "logging_steps": 8, "save_steps": 2}
    usual = stage.StageTrainer.training_step

    def diverges(self, *args, **kwargs) -> torch.Tensor:
        loss = usual(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step >= 4 else loss  # from the fifth step on

    monkeypatch.setattr(stage.StageTrainer, "training_step", diverges)
    config = planned(built, "diverged", **steady, max_steps=8)
    with pytest.raises(
        FloatingPointError, match="the loss is nan by step 6.*checkpoint-4 is from before.*learning_rate"
    ):
        train(config)
    assert [path.name for path in checkpoints(built / "diverged")] == ["checkpoint-4", "checkpoint-2"]
    shutil.rmtree(built / "diverged")
    with pytest.raises(FloatingPointError, match="the loss is nan by step 5"):  # where a report comes before
        train(dataclasses.replace(config, training={**config.training, "logging_steps": 1}))
    assert [record["step"] for record in read_log(built / "diverged/log.jsonl")] == [1, 2, 3, 4]


def test_speed_after_a_resume_is_of_the_steps_since(built, monkeypatch) -> None:
    config = planned(built, "clock", max_steps=12, save_steps=10, eval_steps=12, logging_steps=4)
    with pytest.raises(KeyboardInterrupt):
        train_with(At(11, stop), config, monkeypatch)
    now = itertools.count()  # a clock that advances by a second at each reading
    monkeypatch.setattr("stages.trainer.time.monotonic", lambda: float(next(now)))
    train(config)
    tokens = 2 * config.block_size
    speeds = {
        record["step"]: record["tokens_per_second"] / record["fill"]
        for record in read_log(built / "clock/log.jsonl")
        if "loss" in record
    }
    assert speeds[12] == pytest.approx(2 * tokens, rel=1e-3)  # two steps between two readings, not twelve
