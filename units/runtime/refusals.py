"""Refusals: what a run left out, counted by reason and listed one a line, never stopping it.

    {"where": "released.jsonl:17", "reason": "a unit is out of range: <1000>; this codebook has <0> to <999>"}

The count goes by what stands before the colon of a reason.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import IO

from units.runtime.atomic import written_whole
from units.runtime.gzipped import opened


class Reason(str, Enum):
    """Why an input is left out: a short code that stays the same when the wording of a message changes.

    Each room that refuses inputs has an enum of its own derived from this one, such as units.audio.AudioReason.
    """

    def __str__(self) -> str:
        return self.value


class RefusedError(ValueError):
    """An input that cannot be used. reason: its code. The message says what came, what is allowed and what to do."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


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
        """Its row, with the newline: {"id": "q1", "reason": "too_short", "detail": "..", "audio": "wav/q1.wav"}."""
        row = {"id": self.id, "reason": self.reason.value, "detail": self.detail, "audio": self.audio}
        return json.dumps({name: value for name, value in row.items() if value not in (None, "")}) + "\n"


@dataclass
class Refusals:
    """counts: how many of each reason. file: where each is listed, if anywhere."""

    counts: Counter[str] = field(default_factory=Counter)
    file: IO[str] | None = None

    def add(self, where: str, reason: object) -> None:
        """Count one, and list it.

        Args:
            where: the file and line, or the id, of what is left out.
            reason: why; a text or an exception. `kind: detail` is counted as `kind`.
        """
        self.counts[str(reason).partition(": ")[0]] += 1
        if self.file:
            self.file.write(json.dumps({"where": where, "reason": str(reason)}, ensure_ascii=False) + "\n")

    def __str__(self) -> str:
        return f"{self.counts.total()} refused" + "".join(f"; {n} {kind}" for kind, n in self.counts.most_common())


@contextmanager
def listed_refusals(path: Path) -> Iterator[Refusals]:
    """Refusals that are listed in a file, which appears whole when the block ends; without refusals there is none."""
    with written_whole(path) as file:
        refusals = Refusals(file=file)
        yield refusals
    if not refusals.counts:
        path.unlink()


def numbered_lines(path: Path, refusals: Refusals) -> Iterator[tuple[int, bytes]]:
    """Lines of a file with their numbers; where a compressed file is cut short or damaged, one refusal ends them."""
    number = 0
    with opened(path, "rb") as lines:
        try:
            for number, line in enumerate(lines, 1):
                yield number, line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            refusals.add(f"{path}:{number + 1}", f"the file was cut short or damaged: {error}")
