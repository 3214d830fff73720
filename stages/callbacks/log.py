"""`log.jsonl`: the training reports and the evaluations of a stage, one JSON object a line."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from units.runtime.files.atomic import written_whole
from units.runtime.files.json_files import checked, finished_lines

SAMPLES = "samples.jsonl"  # replies to held-out documents, beside the log


class Log(TrainerCallback):
    """Writes each training report and each evaluation into `log.jsonl`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.began = time.monotonic()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """After a resume the log and its clock continue from the checkpoint; records of later steps are dropped."""
        self.began = time.monotonic()
        if not state.is_world_process_zero:
            return
        for path in (self.path, self.path.with_name(SAMPLES)):
            kept = [record for record in read_log(path) if record["step"] <= state.global_step] if path.exists() else []
            if path.exists():
                with written_whole(path) as file:
                    file.writelines(json.dumps(record) + "\n" for record in kept)
            if path == self.path and kept:
                where = f"{path}, the record of step {kept[-1]['step']}"
                self.began -= checked(kept[-1], where, {"seconds": int | float})["seconds"]

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs=None, **kwargs
    ) -> None:
        logs = logs or {}
        held_out = {name: value for name, value in logs.items() if name.startswith("dev_")}
        if not state.is_world_process_zero or not ("loss" in logs or held_out):
            return
        record: dict[str, Any] = {"step": state.global_step}
        record |= held_out or {name: value for name, value in logs.items() if name not in ("epoch", "step")}
        for name, value in logs.items():
            if held_out and "/" in name:  # asr/text_loss
                task, _, figure = name.partition("/")
                record.setdefault("tasks", {}).setdefault(task, {})[figure] = value
        record["seconds"] = round(time.monotonic() - self.began, 1)
        append(self.path, record)


def append(path: Path, record: dict[str, Any]) -> None:
    """Add a line to a log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Records of a log, without a last line that a killed run did not finish.

    Raises: FileError naming the line if the file is damaged.
    """
    return finished_lines(path, {"step": int})
