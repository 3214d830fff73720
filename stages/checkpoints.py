"""Checkpoints that survive: a mark says that one is whole, a signal saves before it stops, and any number of processes
can go on from one."""

from __future__ import annotations

import json
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

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from units.runtime.atomic import written_whole

MARK = "complete.json"  # written when all processes have written their part: which files, their sizes and checksums
LOOK = 1 << 20  # bytes at either end of a file that its checksum covers; cut-short and zero-filled files differ there
UNIVERSAL = "_universal"  # ending of a folder of shards that fits any number of processes
STOPPED = 128 + signal.SIGTERM  # exit status of a stage that was told to stop
SEEN = 60.0  # seconds that a network file system may take to show a new file: NFS keeps a folder's names so long


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


def check_shared(out: Path, arguments: TrainingArguments) -> None:
    """Make sure that all processes see one folder, before any of them takes what it does not see for missing.

    The first process writes a file of a name that nobody can guess, and the others look for it.

    Raises: ValueError in all of them if one does not find it.
    """
    if arguments.world_size == 1:
        return
    names = [f".shared-{secrets.token_hex(8)}"]
    if arguments.process_index == 0:
        out.mkdir(parents=True, exist_ok=True)
        (out / names[0]).touch()
    torch.distributed.broadcast_object_list(names)
    seen, end = (out / names[0]).exists(), time.monotonic() + SEEN
    while not seen and time.monotonic() < end:
        time.sleep(1)
        seen = (out / names[0]).exists()
    all_see = torch.tensor(float(seen), device=arguments.device)
    torch.distributed.all_reduce(all_see, torch.distributed.ReduceOp.MIN)
    if arguments.process_index == 0:
        (out / names[0]).unlink()
    if not all_see:
        raise ValueError(
            f"{out.absolute()} is not one folder for all {arguments.world_size} processes: what the first one writes there, "
            f"{'another one does' if seen else 'this one does'} not see. The run folder must be one that all machines see, "
            "at one path: name one on a network file system, --run FOLDER"
        )


def common_checkpoint(out: Path, arguments: TrainingArguments) -> Path | None:
    """The newest whole checkpoint of a stage, as the first process finds it, for all of them: it alone looks and deletes."""
    found = [newest_checkpoint(out) if arguments.process_index == 0 else None]
    if arguments.world_size > 1:
        torch.distributed.broadcast_object_list(found)
    return found[0]


def newest_checkpoint(out: Path, delete: bool = True) -> Path | None:
    """The newest whole checkpoint of a stage. Newer ones that are broken are named and deleted: none can use them.

    delete: false in all processes but the first.
    """
    found = checkpoints(out)
    for path in found:
        trouble = damage(path)
        if trouble is None:
            return path
        older = found[found.index(path) + 1 :]
        print(f"{path} is broken: {trouble}; " + (f"trying {older[0].name}" if older else "starting anew"), flush=True)
        if delete:
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
        asked = self.asked
        if args.world_size > 1:
            any_asked = torch.tensor(float(asked), device=args.device)
            torch.distributed.all_reduce(any_asked, torch.distributed.ReduceOp.MAX)
            asked = bool(any_asked)
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
