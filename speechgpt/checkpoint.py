"""`speechgpt.json`: what a checkpoint's Hugging Face files do not hold. Written last: its presence means complete."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speechgpt.typed_text import TextError, check_unicode
from speechgpt.vocab import UnitVocab
from units.codebook import Codebook
from units.runtime.files.atomic import written_whole

FILE = "speechgpt.json"
SPEECHGPT = (
    "speechgpt"  # the system whose vocabulary holds units; files of release 0.1.0 name no system and are of this one
)

# Of checkpoints of release 0.1.0, whose configs have no kind.
KIND_OF_STAGE = {"stage1": "units", "stage2": "cross_modal"}


# Of the fields in the file: the types that a value may have, and the least number.
TYPES: dict[str, tuple[tuple[type, ...], float | None]] = {
    "codebook": ((dict,), None),
    "codebook.name": ((str,), None),
    "codebook.encoder": ((str,), None),
    "codebook.layer": ((int,), 0),
    "codebook.size": ((int,), 1),
    "codebook.frame_rate": ((int, float), 0.001),
    "codebook.centring": ((str,), None),
    "codebook.fingerprint": ((str,), None),
    "stage": ((str,), None),
    "first_unit_id": ((int,), 0),
    "prefix": ((str,), None),
    "config": ((dict,), None),
    "config.kind": ((str,), None),
    "versions": ((dict,), None),
    "system": ((str,), None),
    "extra": ((dict,), None),
}


class CheckpointError(ValueError):
    """A `speechgpt.json` that is damaged, or that another program wrote."""


@dataclass(frozen=True)
class CheckpointFacts:
    """The content of `speechgpt.json`."""

    codebook: Codebook | None
    """Of the units that the model takes and gives; None for a system without units."""
    stage: str
    """The stage that made the checkpoint, such as stage3."""
    first_unit_id: int | None = None
    """Token id of unit 0; None where units are no tokens."""
    prefix: str = ""
    """System text of the dialogue template."""
    config: dict[str, Any] = field(default_factory=dict)
    """The resolved config of the stage."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of the libraries that made the checkpoint."""
    system: str = SPEECHGPT
    """Decides which class opens the folder (speechgpt/open_model.py)."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Whatever else a system needs: its parts, fingerprints, template, ..."""

    def __post_init__(self) -> None:
        if self.system == SPEECHGPT and (self.codebook is None or self.first_unit_id is None):
            raise ValueError(f"a checkpoint of the system {SPEECHGPT!r} needs a codebook and a first_unit_id")

    @property
    def units(self) -> Codebook:
        """The codebook of a model that has one.

        Raises:
            ValueError: the model is of a system without units.
        """
        if self.codebook is None:
            raise ValueError(f"this is a checkpoint of the system {self.system!r}, which has no units")
        return self.codebook

    @property
    def kind(self) -> str:
        """Kind of the stage that made the checkpoint, a word of its system; "" if it is not known."""
        return self.config.get("kind") or KIND_OF_STAGE.get(self.stage, "")

    @property
    def taught(self) -> str:
        """Kind of the stage that taught the model what it can do: of the last one, but of that before it if the last
        one taught it only to do the same better."""
        return self.extra.get("taught", self.kind)

    def save(self, folder: str | Path) -> None:
        """Write `speechgpt.json` into a checkpoint folder; fields without a value are left out."""
        record = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        if not self.extra:
            del record["extra"]
        with written_whole(Path(folder) / FILE) as file:
            json.dump(record, file, indent=1, default=str)

    @classmethod
    def load(cls, folder: str | Path) -> CheckpointFacts:
        """Read `speechgpt.json` from a checkpoint folder, also one of release 0.1.0.

        Raises:
            FileNotFoundError: there is no such folder or file; the message says how one is made.
            CheckpointError: the file is not JSON, or has fields that are unknown, missing or of another type.
        """
        path = Path(folder) / FILE
        if not path.exists():
            what = "is no folder" if not Path(folder).is_dir() else f"has no {FILE}"
            raise FileNotFoundError(
                f"{folder} {what}, so it is no finished SpeechGPT checkpoint. `make demo` makes one in runs/toy/model; "
                "stages/ trains your own."
            )
        record = _read(path)
        unknown = record.keys() - {f.name for f in dataclasses.fields(cls)}
        if unknown:
            raise CheckpointError(f"{path} has unknown fields {sorted(unknown)}; it was written by a newer version")
        needed = {"codebook", "stage", "first_unit_id"} if record.get("system", SPEECHGPT) == SPEECHGPT else {"stage"}
        if missing := {name for name in needed if record.get(name) is None}:
            raise CheckpointError(f"{path} lacks {', '.join(sorted(missing))}; copy or write it again")
        _check_types(record, path)
        codebook = record.get("codebook")
        try:
            return cls(**{**record, "codebook": None if codebook is None else Codebook.from_json(codebook)})
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: {error}") from error

    def check_vocab(self, vocab: UnitVocab, folder: str | Path) -> None:
        """Raise ValueError if the folder's tokenizer is not the one that these facts were written with."""
        if (vocab.size, vocab.first_unit_id) != (self.units.size, self.first_unit_id):
            raise ValueError(
                f"the tokenizer in {folder} has {vocab.size} units from token {vocab.first_unit_id}, but {FILE} says "
                f"{self.units.size} from token {self.first_unit_id}; the two files are not of one checkpoint"
            )


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError if it holds something else."""
    try:
        record = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested without end
        raise CheckpointError(f"{path} is not the JSON of a checkpoint ({error}); copy or write it again") from error
    if not isinstance(record, dict):
        raise CheckpointError(
            f"{path} is not the JSON of a checkpoint: it holds a {type(record).__name__}, not an object with fields"
        )
    return record


def _check_types(record: dict[str, Any], path: Path) -> None:
    """Raise CheckpointError, with the field, if a value is not of its field's type."""
    for name, value in _typed(record):
        kinds, least = TYPES[name]
        if not isinstance(value, kinds) or isinstance(value, bool):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise CheckpointError(f"{path}: {name} is {_shortened(value)}; it must be of the type {wanted}")
        if isinstance(value, (int, float)) and least is not None and not least <= value < float("inf"):
            raise CheckpointError(f"{path}: {name} is {_shortened(value)}; it must be at least {least}")
        if isinstance(value, str):
            try:
                check_unicode(value)
            except TextError as error:
                raise CheckpointError(f"{path}: {name}: {error}") from error


def _typed(record: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values of the fields whose types are known, those within codebook and config too."""
    for name, value in record.items():
        if value is None and name in ("codebook", "first_unit_id"):  # a system without units
            continue
        yield name, value
        for inner, one in value.items() if isinstance(value, dict) else ():
            if f"{name}.{inner}" in TYPES and not (one is None and name == "config"):
                yield f"{name}.{inner}", one


def _shortened(value: object) -> str:
    """A value as an error shows it: one line, not a long one."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
