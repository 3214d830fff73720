"""Measure how fast instruction sets are built, and how much memory that takes, on a made corpus of any size.

    python -m bench.instruct_data --records '[2000]'                       # half a minute
    python -m bench.instruct_data --records '[25000,100000]'               # the published figures

Makes unit sets of so many utterances, a fifth of them in the answer voice, and a text set of as many questions.
Builds every set with one worker and with one per core, and describes them. Each run is a process of its own. Its peak
memory is that of its largest process; where memory use does not depend on the size, the larger corpus takes no more.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.memory import measured, peak_memory
from units.runtime.command import command

if TYPE_CHECKING:
    from units.dataset.unit_set import UnitRecord

VOICE = "answers"
UNITS = 120  # per utterance: about four seconds of mHuBERT's
FRAMES_PER_UNIT = 2
CODEBOOK_SIZE = 1000
WORDS = "the of and to in is that it was for on are with as his they be at one have this from or had by".split()


class DifferentBytes(ValueError):
    """Another number of workers gave other bytes."""


def utterances(count: int) -> Iterator[UnitRecord]:
    """Four questions by different speakers, then an answer."""
    from units.audio import HOP
    from units.codebook import Codebook, Units
    from units.dataset.unit_set import UnitRecord

    codebook = Codebook("made-km1000", "none", 0, CODEBOOK_SIZE, 50.0, "none", "bench")
    draw = random.Random("bench")
    for i in range(count):
        is_question = i % 5 < 4
        text = question(i) if is_question else answer(i)
        speaker = f"speaker{i % 997}" if is_question else VOICE
        units = Units(tuple(draw.choices(range(codebook.size), k=UNITS)), (FRAMES_PER_UNIT,) * UNITS, codebook)
        yield UnitRecord(f"u{i:08d}", units, UNITS * FRAMES_PER_UNIT * HOP, text, speaker)


def question(index: int) -> str:
    """A question of nine words and its number."""
    return " ".join(random.Random(f"q{index}").choices(WORDS, k=9)) + f" {index}"


def answer(index: int) -> str:
    """An answer of twelve words and a number; the four questions before it share it."""
    return " ".join(random.Random(f"a{index - index % 5}").choices(WORDS, k=12)) + f" {index - index % 5}"


def make_corpus(folder: Path, count: int) -> None:
    """Write a unit set and a text set."""
    from units.codebook import Codebook
    from units.dataset.unit_set import write_unit_set

    codebook = Codebook("made-km1000", "none", 0, CODEBOOK_SIZE, 50.0, "none", "bench")
    write_unit_set(folder / "units", utterances(count), codebook)
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for i in range(count):
            if i % 5 < 4:
                file.write(json.dumps({"question": question(i), "answer": answer(i)}) + "\n")


def measure(home: Path, count: int, cores: int) -> list[dict]:
    """The rows of one corpus: built with one worker and with one per core, and described.

    Raises: DifferentBytes.
    """
    rows = []
    for workers in sorted({1, cores}):
        out = home / f"sets{workers}"
        places = ["--units", home / "units", "--pairs", home / "pairs.jsonl", "--voice", VOICE, "--out", out]
        options = ["--chat_ratio", 0.1, "--splits.dev", 0.01, "--splits.test", 0.01, "--workers", workers]
        usage = measured("instruct_data.build", *places, *options)
        counts = json.loads((out / "build.json").read_text())["counts"]
        written = sum(sum(tasks.values()) for tasks in counts.values())
        rows.append(row(f"build, {workers} workers", count, written, usage.seconds, usage.mib))
    for path in (home / "sets1").iterdir():
        if path.read_bytes() != (home / f"sets{cores}" / path.name).read_bytes():
            raise DifferentBytes(f"{path.name} has other bytes with {cores} workers than with 1")
    usage = measured("instruct_data.describe.report", home / "sets1", "--page", home / "describe.html")
    rows.append(row("describe", count, written, usage.seconds, usage.mib))
    return rows


def row(what: str, records: int, conversations: int, seconds: float, mib: float) -> dict:
    """One line of the table."""
    return {"what": what, "records": records, "conversations": conversations, "seconds": seconds, "mib": mib}


def print_table(rows: Sequence[dict]) -> None:
    """Print the rows with their rates."""
    print(f"{'':18} {'utterances':>11} {'conversations':>14} {'seconds':>9} {'conversations/s':>16} {'peak MiB':>9}")
    for one in rows:
        rate = one["conversations"] / one["seconds"]
        print(
            f"{one['what']:18} {one['records']:>11,} {one['conversations']:>14,} {one['seconds']:>9.1f} "
            f"{rate:>16,.0f} {one['mib']:>9.0f}"
        )


@command("python -m bench.instruct_data", positional=False)
def main(records: list[int] = [25_000, 100_000], out: Path | None = None) -> None:  # noqa: B006
    """Build sets of made corpora of several sizes.

    Args:
        records: utterances of each corpus, 1 or more
        out: json file for the figures, beside the printed table
    """
    if not records or min(records) < 1:
        raise ValueError(f"records is {records}; allowed: one or more numbers of at least 1")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    rows: list[dict] = []
    for count in records:
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            make_corpus(Path(folder), count)
            print(f"{count:,} utterances made in {time.monotonic() - began:.0f} s", file=sys.stderr)
            rows += measure(Path(folder), count, cores)
    print_table(rows)
    own = peak_memory() / 2**20
    print(f"{cores} cores; the same bytes with any number of workers; this process itself took {own:.0f} MiB")
    if out:
        out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main.cli()
