"""What stands where a stage would write: nothing, an earlier part of the same stage, or something else."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from speechgpt.checkpoint import FILE, CheckpointFacts
from stages.callbacks.checkpoints import checkpoints
from stages.config import StageConfig
from stages.system import System
from units.runtime.files.json_files import FileError
from units.runtime.files.yaml_files import read_yaml

RESOLVED = "stage.yaml"  # the resolved config of a stage, beside its checkpoints


class PlaceError(ValueError):
    """A stage would write over something that is not its own."""


def is_finished(config: StageConfig, system: System) -> bool:
    """Whether the stage has been trained already; nothing is written.

    Raises: PlaceError if its folder is the model that it starts from, lies in it or holds it, or holds another stage, a
        model or other files.
    """
    out = config.at(config.out)
    _check_apart(config, out)
    if not out.exists():
        return False
    if not out.is_dir():
        raise PlaceError(f"{out} is a file; {config.stage} writes a folder: name another out")
    _check_same_stage(config, system, out)
    finished = (out / system.completion_file(config)).exists()
    before = read_resolved(out)
    if finished and before.get("model", config.model) != config.model:
        print(f"{out} was trained from {before['model']}, not from {config.model}; name another out to train again")
    elif finished and (changed := _changed(config, before)):
        print(f"{out} was trained with other {', '.join(changed)}; name another out to train again")
    return finished


def _changed(config: StageConfig, before: dict[str, Any]) -> list[str]:
    """Fields of the config that differ from those that a stage was trained with; a field that only one of two releases
    has is no change, nor is another place of the run folder."""
    now = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    then = json.loads(json.dumps(before, default=str))
    return sorted(name for name in (now.keys() & then.keys()) - {"run"} if now[name] != then[name])


def _check_apart(config: StageConfig, out: Path) -> None:
    """Raise PlaceError unless the stage's folder and its start are apart, and the folder is within none of them."""
    folder, start, run = out.resolve(), config.at(config.model).resolve(), config.run.resolve()
    if folder == start:
        raise PlaceError(f"out and model are both {config.out}: {config.stage} would write over its start")
    if start.exists() and (start in folder.parents or folder in start.parents):
        raise PlaceError(f"out {out} and model {start} lie in one another; name another out")
    if folder == run or folder in run.parents:
        raise PlaceError(f"out {out} is the run folder or holds it; name a folder in it")


def _check_same_stage(config: StageConfig, system: System, out: Path) -> None:
    """Raise PlaceError if a folder holds anything but this stage, begun or finished."""
    if (out / FILE).exists():
        facts = CheckpointFacts.load(out)
        if (facts.stage, facts.system) != (config.stage, system.name):
            raise _taken(config, out, f"{facts.stage} of the system {facts.system}, finished")
    before = read_resolved(out)
    names = ("stage", "kind")
    if any(name in before and before[name] != getattr(config, name) for name in names):
        raise _taken(config, out, " of kind ".join(str(before[name]) for name in names if name in before))
    visible = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    if visible and not before and not (out / FILE).exists() and not checkpoints(out):
        raise _taken(config, out, ", ".join(visible[:3]) + (" .." if visible[3:] else "") + ", which no stage wrote")


def _taken(config: StageConfig, out: Path, what: str) -> PlaceError:
    return PlaceError(f"{config.stage} would write into {out}, which holds {what}; name another out, or move that away")


def read_resolved(out: Path) -> dict[str, Any]:
    """The config that a stage's folder was begun with; empty if there is none.

    Raises: PlaceError if the file is damaged.
    """
    path = out / RESOLVED
    if not path.exists():
        return {}
    try:
        found = read_yaml(path)
    except FileError as error:
        raise PlaceError(f"{path} is damaged ({error}); delete it to go on") from error
    if not found:
        raise PlaceError(f"{path} is damaged: it holds no fields; delete it to go on")
    return found
