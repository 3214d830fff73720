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
from pathlib import Path
from typing import IO

from instruct_data.records import opened
from units.manifest import written_whole


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
