"""A codebook names a set of units; Units are a wav's sequence of them, runs collapsed, durations kept."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from units.runtime.files.json_files import FileError, FileReason, checked, parsed, read_text


class CodebookMismatch(ValueError):
    """Units or models of two different codebooks are used together."""


@dataclass(frozen=True)
class Codebook:
    """The meaning of unit numbers: everything that decides them, and nothing else.

    name: for messages, such as "starter-L3-km100".
    encoder: where the features come from, such as "starter", "mfcc" or a hub id.
    layer: transformer layer of the features, 1-based; 0 for MFCC.
    size: K, the number of units; ids are 0 .. K-1.
    frame_rate: frames per second.
    centring: how features are normalised: "utterance" (its mean is subtracted), "frame" (each frame is then scaled to
        deviation 1 as well) or "none".
    fingerprint: hash of the encoder's weights up to the layer and of the centres.
    """

    name: str
    encoder: str
    layer: int
    size: int
    frame_rate: float
    centring: str
    fingerprint: str

    def check_same(self, other: Codebook, mine: str, theirs: str) -> None:
        """Raise CodebookMismatch unless `other` is this codebook; `mine` and `theirs` name their owners."""
        if other.fingerprint != self.fingerprint:
            raise CodebookMismatch(
                f"{theirs} speaks the codebook {other.name!r} ({other.fingerprint}), but {mine} speaks {self.name!r} "
                f"({self.fingerprint}). Use parts made with one unit encoder, or extract and train again with one."
            )

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str | dict, where: str = "the codebook") -> Codebook:
        """Inverse of to_json; also takes the parsed dict.

        Args:
            text: the JSON.
            where: the file, for errors.

        Raises: FileError on missing or unknown fields, and on values that no codebook has.
        """
        record = checked(parsed(text, where) if isinstance(text, str) else text, where, {})
        if record.keys() != _FIELDS.keys():
            raise FileError(
                FileReason.INVALID_FIELD,
                f"{where}: a codebook has the fields {sorted(_FIELDS)}; this one has {sorted(record)}",
            )
        checked(record, where, _FIELDS)
        for name, least in (("layer", 0), ("size", 1), ("frame_rate", 1)):
            if not least <= record[name] <= LARGEST:
                raise FileError(
                    FileReason.INVALID_FIELD,
                    f"{where}: {name} is {record[name]}; in a codebook it is from {least} to {LARGEST}",
                )
        return cls(**record)

    @classmethod
    def load(cls, path: str | Path) -> Codebook:
        """Read a `codebook.json`. Raises FileNotFoundError, or FileError as from_json."""
        return cls.from_json(read_text(Path(path)), str(path))


_FIELDS = {
    "name": str,
    "encoder": str,
    "layer": int,
    "size": int,
    "frame_rate": float | int,
    "centring": str,
    "fingerprint": str,
}
LARGEST = 2**31  # of a codebook's numbers


@dataclass(frozen=True)
class Units:
    """Collapsed units of one wav.

    ids: each in [0, codebook.size). durations: frames of each, at least 1; None if unknown, as in units that a
    language model wrote.
    """

    ids: tuple[int, ...]
    durations: tuple[int, ...] | None
    codebook: Codebook

    def __post_init__(self) -> None:
        if self.durations is not None and len(self.ids) != len(self.durations):
            raise ValueError(f"{len(self.ids)} ids but {len(self.durations)} durations; each unit has one")
        if self.ids and not 0 <= min(self.ids) <= max(self.ids) < self.codebook.size:
            raise ValueError(
                f"unit ids run from {min(self.ids)} to {max(self.ids)}; "
                f"{self.codebook.name!r} has 0 to {self.codebook.size - 1}"
            )
        if self.durations and min(self.durations) < 1:
            raise ValueError("a unit lasts at least one frame")

    @classmethod
    def from_frames(cls, frames: Sequence[int], codebook: Codebook) -> Units:
        """Units of a sequence with one id per frame."""
        return cls(*reduce(frames), codebook)

    def frames(self) -> list[int]:
        """One id per frame; inverse of from_frames. Raises ValueError if the durations are unknown."""
        if self.durations is None:
            raise ValueError("these units have no durations; a vocoder's duration predictor can make some")
        return expand(self.ids, self.durations)


def reduce(frames: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Collapse runs of equal units.

    Example: [5, 5, 5, 2, 2, 7] -> ids (5, 2, 7), durations (3, 2, 1)
    """
    ids: list[int] = []
    durations: list[int] = []
    for unit in frames:
        if ids and ids[-1] == unit:
            durations[-1] += 1
        else:
            ids.append(int(unit))
            durations.append(1)
    return tuple(ids), tuple(durations)


def expand(ids: Sequence[int], durations: Sequence[int]) -> list[int]:
    """Repeat each unit for its duration; inverse of reduce."""
    return [unit for unit, duration in zip(ids, durations, strict=True) for _ in range(duration)]
