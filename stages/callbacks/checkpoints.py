"""Checkpoints that survive: a completion file in each, a checkpoint before a stop by SIGTERM, and resuming with any
number of processes."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from units.runtime.files.atomic import written_whole
from units.runtime.files.json_files import FileError, FileReason, read_json

COMPLETE = "complete.json"  # written after all processes have written: files, sizes, checksums, number of processes
EDGE = 1 << 20  # bytes at either end of a file that its checksum covers; truncated and zero-filled files differ there
UNIVERSAL = "_universal"  # suffix of a folder of shards that fits any number of processes
STOPPED = 128 + signal.SIGTERM  # exit code of a stage that was stopped by SIGTERM, after a checkpoint
VISIBLE = 60.0  # seconds that a network file system may take to show a new file: NFS caches a folder's names so long


class CheckpointError(OSError):
    """A checkpoint that could not be written; the message says which is left and what to do."""


def mark_complete(checkpoint: Path, processes: int) -> None:
    """Write the completion file of a checkpoint, after everything else in it."""
    paths = [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]
    files = {str(path.relative_to(checkpoint)): _checksum(path) for path in paths}
    files.pop(COMPLETE, None)
    with written_whole(checkpoint / COMPLETE) as file:
        json.dump({"processes": processes, "files": files}, file)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    if not (checkpoint / COMPLETE).exists():
        return "it is not complete"
    try:
        for name, expected in read_complete(checkpoint)["files"].items():
            path = checkpoint / name
            if not path.exists():
                return f"{name} is missing"
            if _checksum(path) != expected:
                return f"{name} differs from what was written"
    except (FileError, OSError) as error:
        return str(error)
    return None


def read_complete(checkpoint: Path) -> dict[str, Any]:
    """The completion file of a checkpoint.

    Raises: FileError if it is damaged.
    """
    found = read_json(checkpoint / COMPLETE, {"processes": int, "files": dict})
    if found["processes"] < 1:
        raise FileError(
            FileReason.INVALID_FIELD,
            f"{checkpoint / COMPLETE}: processes is {found['processes']}; it must be at least 1",
        )
    return found


def _checksum(path: Path) -> list[int]:
    """Size of a file, and a checksum of its first and last bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        checksum = zlib.crc32(file.read(EDGE))
        file.seek(max(EDGE, size - EDGE))
        return [size, zlib.crc32(file.read(EDGE), checksum)]


def checkpoints(out: Path) -> list[Path]:
    """Checkpoint folders of a stage, complete or not, the newest first; not checkpoint-best and the like."""
    found = (path for path in out.glob("checkpoint-*") if re.fullmatch(r"checkpoint-[0-9]+", path.name))
    return sorted(found, key=lambda path: -int(path.name.split("-")[1]))


def check_shared(out: Path, arguments: TrainingArguments) -> None:
    """Check that all processes see the same folder, before one of them takes a checkpoint for missing.

    The first process writes a file of a random name, and the others look for it.

    Raises: ValueError in all processes if one of them does not find it.
    """
    if arguments.world_size == 1:
        return
    names = [f".shared-{secrets.token_hex(8)}"]
    if arguments.process_index == 0:
        out.mkdir(parents=True, exist_ok=True)
        (out / names[0]).touch()
    torch.distributed.broadcast_object_list(names)
    seen, end = (out / names[0]).exists(), time.monotonic() + VISIBLE
    while not seen and time.monotonic() < end:
        time.sleep(1)
        seen = (out / names[0]).exists()
    all_see = torch.tensor(float(seen), device=arguments.device)
    torch.distributed.all_reduce(all_see, torch.distributed.ReduceOp.MIN)
    if arguments.process_index == 0:
        (out / names[0]).unlink()
    if not all_see:
        raise ValueError(
            f"{out.absolute()} is not shared by all {arguments.world_size} processes: a file of the first one is "
            "missing for "
            f"{'another one' if seen else 'this one'}. The run folder must be at one path on a file system that all "
            "machines share: --run FOLDER"
        )


def common_checkpoint(out: Path, arguments: TrainingArguments) -> Path | None:
    """The newest complete checkpoint of a stage, for all processes: the first one alone looks for it and deletes."""
    found = [newest_checkpoint(out) if arguments.process_index == 0 else None]
    if arguments.world_size > 1:
        torch.distributed.broadcast_object_list(found)
    return found[0]


def newest_checkpoint(out: Path, delete: bool = True) -> Path | None:
    """The newest complete checkpoint of a stage. Newer damaged ones are named and deleted.

    Args:
        delete: false in all processes but the first.
    """
    found = checkpoints(out)
    for path in found:
        trouble = damage(path)
        if trouble is None:
            return path
        older = found[found.index(path) + 1 :]
        then = f"trying {older[0].name}" if older else "starting from the beginning"
        print(f"{path} is damaged: {trouble}; {then}", flush=True)
        if delete:
            shutil.rmtree(path)
    return None


def processes_of(checkpoint: Path) -> int:
    """How many processes wrote a checkpoint."""
    return read_complete(checkpoint)["processes"]


class Checkpoints(TrainerCallback):
    """Writes the completion file of each checkpoint. On SIGTERM it saves after the current step, then stops.

    transformers' enable_jit_checkpoint saves between the passes of a step, each process at another time; here all
    processes agree on the step.

    Args:
        every: steps after which the processes ask each other whether one of them was stopped.
    """

    def __init__(self, every: int = 1) -> None:
        self.every = every
        self.asked = self.stopped = False
        self._before: object = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        print(f"SIGTERM: saving {'after this step' if self.every == 1 else 'at the next average'}", flush=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        asked = self.asked
        if args.world_size > 1:
            if state.global_step % self.every:
                return
            any_asked = torch.tensor(float(asked), device=args.device)
            torch.distributed.all_reduce(any_asked, torch.distributed.ReduceOp.MAX)
            asked = bool(any_asked)
        if asked and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if args.world_size > 1:
            torch.distributed.barrier()  # every process has written its part
        if state.is_world_process_zero:
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}", args.world_size)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)  # type: ignore[arg-type]


def prepare_resume(checkpoint: Path, arguments: TrainingArguments) -> None:
    """Prepare a checkpoint for resuming with this number of processes.

    DeepSpeed's shards fit one number of processes; for another they are rewritten, once, as a universal checkpoint.
    """
    written = processes_of(checkpoint)
    shards = next((path for path in checkpoint.glob("global_step*") if not path.name.endswith(UNIVERSAL)), None)
    if written == arguments.world_size or shards is None:
        return
    print(f"{checkpoint} is of {written} processes, resuming with {arguments.world_size}", flush=True)
    universal = shards.with_name(shards.name + UNIVERSAL)
    if not (checkpoint / "latest_universal").exists():
        part = shards.with_name(f".{universal.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        module = ["-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
        folders = ["--input_folder", str(shards), "--output_folder", str(part)]
        subprocess.run([sys.executable, *module, *folders], check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(universal, ignore_errors=True)
        part.rename(universal)
        with written_whole(checkpoint / "latest_universal") as file:
            file.write(universal.name)
    arguments.hf_deepspeed_config.config["checkpoint"] = {"load_universal": True}
