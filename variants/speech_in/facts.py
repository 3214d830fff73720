"""What `speechgpt.json` holds of every model with speech at its input, and how weights of a part are read beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from speechgpt.checkpoint import FILE, CheckpointError, CheckpointFacts
from units.runtime.command import check_range
from units.runtime.files.json_files import checked
from variants.references import Reference

if TYPE_CHECKING:
    from torch import Tensor

Facts = TypeVar("Facts")
# of the listening half, in `extra`, and their types
FIELDS = {"llm": dict, "encoder": dict, "layer": int, "width": int, "shape": dict, "template": str, "window": str}
FIELDS |= {"instructions": dict}


def read_facts(folder: Path, system: str, read: Callable[[CheckpointFacts], Facts]) -> Facts:
    """Read a model folder's facts.

    Args:
        system: the system that the folder is of. read: makes its facts of the file's content.

    Raises: FileNotFoundError; CheckpointError if they are of another system, or damaged.
    """
    facts = CheckpointFacts.load(folder)
    path = folder / FILE
    if facts.system != system:
        raise CheckpointError(f"{path}: it is of the system {facts.system!r:.60}, not {system!r}")
    checked(facts.extra, f"{path}, extra", FIELDS)
    try:
        return read(facts)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path} lacks or garbles a field of {system}: {error}") from error


def listening_fields(extra: dict[str, Any], shape: Callable[..., Any]) -> dict[str, Any]:
    """The fields of the listening half, as `listening_json` wrote them.

    Args:
        extra: of `speechgpt.json`. shape: class of the adapter's shape.
    """
    return {
        "llm": Reference.read(extra, "llm"),
        "encoder": Reference.read(extra, "encoder"),
        "layer": _counted(extra, "layer"),
        "width": _counted(extra, "width"),
        "shape": shape(**extra["shape"]),
        "template": extra["template"],
        "instructions": checked(extra["instructions"], "instructions", dict.fromkeys(extra["instructions"], str)),
        "window": extra["window"],
    }


def _counted(extra: dict[str, Any], name: str) -> int:
    check_range(name, extra[name], 1)
    return extra[name]


def listening_json(facts: Any) -> dict[str, Any]:
    """The fields of a system's facts as JSON; inverse of `listening_fields` for those of the listening half."""
    found = {one.name: getattr(facts, one.name) for one in dataclasses.fields(facts)}
    found |= {"llm": facts.llm.json(), "encoder": facts.encoder.json(), "shape": dataclasses.asdict(facts.shape)}
    return found | {"instructions": dict(facts.instructions)}


def read_part(folder: Path, file: str, prefix: str) -> dict[str, Tensor]:
    """Weights of a part of a model folder, by their names in the part.

    Args:
        file: of the part, in safetensors. prefix: of the names in the file.

    Raises: FileNotFoundError; ValueError if the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / file
    if not path.exists():
        raise FileNotFoundError(f"{folder} has no {file}")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again") from error
    return {name.removeprefix(prefix): weight for name, weight in weights.items()}
