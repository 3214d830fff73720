"""Utterances to vocode, read from a text file or a unit set; a line that cannot be vocoded is a refusal.

A text file is UTF-8 with one utterance a line: `id|12 7 7`, `12 7 7`, or `<sosp><12><7><eosp>`. A byte order mark at
its start is not part of the first line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING

from units import notation
from units.codebook import Codebook, Units
from units.runtime.files.json_files import BOM
from units.runtime.refusals import Reason, Refusal, RefusedError, refusal_of

if TYPE_CHECKING:
    from units.dataset.unit_set import UnitSet


class VocodeReason(Reason):
    """Why a line is not vocoded."""

    NOT_UTF8 = "not_utf8"
    """the line is not UTF-8 text"""
    NOT_UNITS = "not_units"
    """the line has none of the three forms"""
    OUT_OF_RANGE = "out_of_range"
    """a unit id is beyond the codebook"""
    NO_UNITS = "no_units"
    """the line has no unit"""
    SAME_ID = "same_id"
    """an earlier line has the id"""
    OUTSIDE_FOLDER = "outside_folder"
    """the id is no path below the output folder"""


@dataclass(frozen=True)
class Line:
    """One utterance. id: as the text file or the unit set has it; units.runtime.files.file_names names its wav."""

    id: str
    units: Units


def read_lines(file: IO[bytes], codebook: Codebook, durations: bool = True) -> Iterator[Line | Refusal]:
    """The utterances of a text, in order. A line without an id gets its number: `00001`, `00002`, ...

    Args:
        file: the text, open for reading.
        codebook: of the units.
        durations: False if each id stands for one frame of 20 ms; True leaves the durations to the vocoder.
    """
    seen: set[str] = set()
    for number, content in enumerate(file, 1):
        text = content.removeprefix(BOM) if number == 1 else content
        if not text.strip():
            continue
        name = f"{number:05d}"
        try:
            name, spelled = _split(_decoded(text), name)
            if name in seen:
                raise RefusedError(VocodeReason.SAME_ID, f"the id {name!r} is used twice; ids are unique")
            seen.add(name)
            check_id(name)
            yield Line(name, _read_units(spelled, codebook, durations))
        except RefusedError as error:
            yield refusal_of(name, error, f"line {number}: {error}")


def _decoded(content: bytes) -> str:
    """The text of a line. Raises RefusedError."""
    try:
        return content.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        shown = content.strip().decode("utf-8", "backslashreplace")[:40]
        raise RefusedError(VocodeReason.NOT_UTF8, f"{shown!r} is not UTF-8 text") from error


def _split(text: str, number: str) -> tuple[str, str]:
    """The id and the units of a line; the line's number is its id if it has none."""
    name, bar, spelled = text.rpartition("|")
    return (name.strip() if bar else number), spelled


def _read_units(text: str, codebook: Codebook, durations: bool) -> Units:
    """Units of one line. Raises RefusedError."""
    try:
        if text.lstrip().startswith(notation.SOSP):
            ids = notation.read(text)
        elif all(word.isascii() and word.isdecimal() for word in text.split()):
            ids = [int(word) for word in text.split()]
        else:
            forms = f"`12 7 7` and {notation.spell([12, 7, 7])}"
            raise RefusedError(VocodeReason.NOT_UNITS, f"{text[:40]!r} are not units; the forms are {forms}")
    except RefusedError:
        raise
    except ValueError as error:
        raise RefusedError(VocodeReason.NOT_UNITS, str(error)) from error
    if not ids:
        raise _no_units()
    try:
        return Units(tuple(ids), None, codebook) if durations else Units.from_frames(ids, codebook)
    except ValueError as error:
        raise RefusedError(VocodeReason.OUT_OF_RANGE, str(error)) from error


def check_id(name: str) -> None:
    """Raises: RefusedError if an id is empty, or the path of a file elsewhere than below the output folder.

    Other ids that cannot be the name of a file, such as `a/` or one of 300 letters, get another name.
    """
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts:
        raise RefusedError(
            VocodeReason.OUTSIDE_FOLDER, f"the id {name!r} is not the name of a file below the output folder"
        )


def read_set(unit_set: UnitSet) -> Iterator[Line | Refusal]:
    """The utterances of a unit set, with the durations of the recordings."""
    for record in unit_set:
        try:
            check_id(record.id)
            if not record.units.ids:
                raise _no_units()
            yield Line(record.id, record.units)
        except RefusedError as error:
            yield refusal_of(record.id, error)


def _no_units() -> RefusedError:
    return RefusedError(VocodeReason.NO_UNITS, "there are no units; a wav needs at least one unit")
