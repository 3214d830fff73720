"""Refusals: the inputs that a run leaves out. They are counted by reason code and listed, and do not stop it.

A list of refusals is JSON lines, one `Refusal` a line:

    {"id": "q1", "reason": "too_short", "detail": "q1.wav is 0.010 s long; ...", "audio": "wav/q1.wav"}

`id` names the utterance, or is FILE:LINE. `reason` is a code that stays the same when the wording of `detail` changes.
Release 0.1.0 wrote a sentence as `reason`, or `where` and `reason`; `read_refusals` reads those rows under the code
`other`.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import IO

from units.runtime.files.atomic import written_whole
from units.runtime.files.gzipped import opened

LONGEST_DETAIL = 500  # characters of a detail that are listed


class Reason(str, Enum):
    """Why an input is left out: a short code that stays the same when the wording of a message changes.

    Each package that refuses inputs derives an enum from this one, such as units.audio.AudioReason.
    """

    def __str__(self) -> str:
        return self.value


class CommonReason(Reason):
    """Reasons that do not belong to one kind of input."""

    DAMAGED = "damaged_file"
    """a compressed file is cut short or damaged; its remaining lines are lost"""
    OTHER = "other"
    """a refusal without a code, as release 0.1.0 wrote them"""


class RefusedError(ValueError):
    """An input that cannot be used.

    Args:
        reason: its code.
        message: what came, what is allowed and what to do.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple:
        return type(self), (self.reason, str(self))  # worker processes return their errors pickled


@dataclass(frozen=True)
class Refusal:
    """One input that a run left out: a row of `refused.jsonl`.

    id: of the utterance, or FILE:LINE. reason: its code. detail: a sentence. audio: its audio file, if it has one.
    """

    id: str
    reason: Reason
    detail: str = ""
    audio: str | None = None

    def line(self) -> str:
        """The row as a line of JSON in ASCII, since the name of a file need not be Unicode."""
        row = {"id": self.id, "reason": self.reason.value, "detail": self.detail, "audio": self.audio}
        return json.dumps({name: value for name, value in row.items() if value not in (None, "")}) + "\n"


def refusal_of(id: str, refusal: Reason | RefusedError, detail: str = "", audio: Path | str | None = None) -> Refusal:
    """The row of one refused input.

    Args:
        id: of the utterance, or FILE:LINE.
        refusal: a reason code, or the error that holds one; the error's message is the detail where none is given.
        detail: a sentence, or the value that was refused.
        audio: the audio file.
    """
    reason = refusal.reason if isinstance(refusal, RefusedError) else refusal
    message = detail or (str(refusal) if isinstance(refusal, RefusedError) else "")
    return Refusal(id, reason, message[:LONGEST_DETAIL], None if audio is None else str(audio))


@dataclass
class Refusals:
    """What one run refuses.

    counts: how many inputs by reason code. file: where rows are written, if anywhere. rows: a list that collects them,
    for callers that need the rows themselves.
    """

    counts: Counter[str] = field(default_factory=Counter)
    file: IO[str] | None = None
    rows: list[Refusal] | None = None

    def add(
        self, id: str | Path, refusal: Reason | RefusedError, detail: object = "", audio: Path | str | None = None
    ) -> None:
        """Count one refused input and list it. The arguments are those of `refusal_of`."""
        row = refusal_of(str(id), refusal, str(detail), audio)
        self.counts[row.reason.value] += 1
        if self.file:
            self.file.write(row.line())
        if self.rows is not None:
            self.rows.append(row)

    def __str__(self) -> str:
        return counted(self.counts)


def counted(counts: Counter[str]) -> str:
    """Counts by reason as one phrase, such as `3 refused (2 too_short, 1 unreadable)`."""
    kinds = ", ".join(f"{n} {reason}" for reason, n in counts.most_common())
    return f"{counts.total()} refused" + (f" ({kinds})" if kinds else "")


@contextmanager
def listed_refusals(path: Path) -> Iterator[Refusals]:
    """Refusals that are listed in a file. It appears when the block ends, and only if there are refusals."""
    with written_whole(path) as file:
        refusals = Refusals(file=file)
        yield refusals
    if not refusals.counts:
        path.unlink()


def read_refusals(rows: Iterable[Mapping[str, object]]) -> Iterator[tuple[str, str, str]]:
    """(id, reason code, detail) of each row of a list of refusals; rows of release 0.1.0 have the code `other`.

    Codes are text here: a list may hold codes of any package.
    """
    for row in rows:
        reason = str(row.get("reason", CommonReason.OTHER.value))
        if "where" in row or " " in reason:
            yield str(row.get("id", row.get("where", ""))), CommonReason.OTHER.value, reason
        else:
            yield str(row.get("id", "")), reason, str(row.get("detail", ""))


def numbered_lines(path: Path, refusals: Refusals) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers, from 1. Damage of a compressed file is refused and ends them."""
    number = 0
    with opened(path, "rb") as lines:
        try:
            for number, line in enumerate(lines, 1):
                yield number, line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            refusals.add(f"{path}:{number + 1}", CommonReason.DAMAGED, str(error))
