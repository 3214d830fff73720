"""Checkpoints that survive: a mark says that one is whole, a signal saves before it stops, and any number of processes
can go on from one."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from types import FrameType

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from units.manifest import written_whole

MARK = "complete.json"  # written when all processes have written their part: which files, their sizes and checksums
LOOK = 1 << 20  # bytes at either end of a file that its checksum covers; cut-short and zero-filled files differ there
UNIVERSAL = "_universal"  # ending of a folder of shards that fits any number of processes
STOPPED = 128 + signal.SIGTERM  # exit status of a stage that was told to stop


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written; the message says what is left and what to do."""


def mark_whole(checkpoint: Path, processes: int) -> None:
    """Say that a checkpoint is whole; the last thing that is written into it."""
    files = {str(path.relative_to(checkpoint)): _look(path) for path in sorted(checkpoint.rglob("*")) if path.is_file()}
    files.pop(MARK, None)
    with written_whole(checkpoint / MARK) as file:
        json.dump({"processes": processes, "files": files}, file)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    if not (checkpoint / MARK).exists():
        return "it was cut short"
    for name, expected in json.loads((checkpoint / MARK).read_text(encoding="utf-8"))["files"].items():
        path = checkpoint / name
        if not path.exists():
            return f"{name} is missing"
        if _look(path) != expected:
            return f"{name} is not what was written"
    return None


def _look(path: Path) -> list[int]:
    """Size of a file, and a checksum of its head and its tail."""
    size = path.stat().st_size
    with path.open("rb") as file:
        checksum = zlib.crc32(file.read(LOOK))
        file.seek(max(LOOK, size - LOOK))
        return [size, zlib.crc32(file.read(LOOK), checksum)]


def checkpoints(out: Path) -> list[Path]:
    """Checkpoint folders of a stage, whole or not, the newest first."""
    return sorted(out.glob("checkpoint-*"), key=lambda path: -int(path.name.split("-")[1]))


def newest_checkpoint(out: Path) -> Path | None:
    """The newest whole checkpoint of a stage. Newer ones that are broken are named and deleted: none can use them."""
    found = checkpoints(out)
    for path in found:
        trouble = damage(path)
        if trouble is None:
            return path
        older = found[found.index(path) + 1 :]
        print(f"{path} is broken: {trouble}; " + (f"trying {older[0].name}" if older else "starting anew"), flush=True)
        shutil.rmtree(path)
    return None


def processes_of(checkpoint: Path) -> int:
    """How many processes wrote a checkpoint."""
    return json.loads((checkpoint / MARK).read_text(encoding="utf-8"))["processes"]


class Checkpoints(TrainerCallback):
    """Marks each checkpoint as whole, and answers SIGTERM: save after this step, then stop.

    transformers' own answer (enable_jit_checkpoint) saves between the passes of a step, and each process by its own
    clock; here all processes agree on the step.
    """

    def __init__(self) -> None:
        self.asked = self.stopped = False
        self._before: object = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        print("told to stop (SIGTERM): saving after this step", flush=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        asked = torch.tensor(float(self.asked), device=args.device)
        if args.world_size > 1:
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
        if asked and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if args.world_size > 1:
            torch.distributed.barrier()  # every process has written its part
        if state.is_world_process_zero:
            mark_whole(Path(args.output_dir) / f"checkpoint-{state.global_step}", args.world_size)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)  # type: ignore[arg-type]


def prepare_resume(checkpoint: Path, arguments: TrainingArguments) -> None:
    """Make a checkpoint fit to go on from with these processes.

    DeepSpeed's shards fit one number of processes only; for another they are rewritten, once, as a universal checkpoint.
    """
    written = processes_of(checkpoint)
    shards = next((path for path in checkpoint.glob("global_step*") if not path.name.endswith(UNIVERSAL)), None)
    if written == arguments.world_size or shards is None:
        return
    print(f"{checkpoint} is of {written} processes, going on with {arguments.world_size}", flush=True)
    universal = shards.with_name(shards.name + UNIVERSAL)
    if not (checkpoint / "latest_universal").exists():
        part = shards.with_name(f".{universal.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state",
                   "--input_folder", str(shards), "--output_folder", str(part)]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(universal, ignore_errors=True)
        part.rename(universal)
        with written_whole(checkpoint / "latest_universal") as file:
            file.write(universal.name)
    arguments.hf_deepspeed_config.config["checkpoint"] = {"load_universal": True}
