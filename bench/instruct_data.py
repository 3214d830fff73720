"""How fast instruction sets are built, and how much memory that takes, on a made corpus of any size.

    python -m bench.instruct_data --records '[2000]'                       # half a minute
    python -m bench.instruct_data --records '[25000,100000]'               # the figures of the README

Makes unit sets of so many utterances (a fifth of them in the answer voice) with a text set of as many questions, builds
every set with one worker and with one for each core, and describes them. Each run is a process of its own; its peak
memory is that of the greatest of its processes. Where memory is flat, the greater corpus takes no more.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.memory import peak_memory
from units.codebook import Codebook, Units
from units.dataset.unit_set import UnitRecord, write_unit_set

ROOT = Path(__file__).parents[1]
CODEBOOK = Codebook("made-km1000", "none", 0, 1000, 50.0, "none", "bench")
VOICE = "answers"
UNITS = 120  # of an utterance: about four seconds of mHuBERT's
WORDS = "the of and to in is that it was for on are with as his they be at one have this from or had by".split()


def utterances(count: int) -> Iterator[UnitRecord]:
    """Four questions by different speakers, then an answer."""
    draw = random.Random("bench")
    for i in range(count):
        asked = i % 5 < 4
        text = question(i) if asked else answer(i)
        ids = tuple(draw.choices(range(CODEBOOK.size), k=UNITS))
        units = Units(ids, (2,) * UNITS, CODEBOOK)
        yield UnitRecord(f"u{i:08d}", units, UNITS * 2 * 320, text, f"speaker{i % 997}" if asked else VOICE)


def question(index: int) -> str:
    return " ".join(random.Random(f"q{index}").choices(WORDS, k=9)) + f" {index}"


def answer(index: int) -> str:
    """The four questions before an answer share it."""
    return " ".join(random.Random(f"a{index - index % 5}").choices(WORDS, k=12)) + f" {index - index % 5}"


def make_corpus(folder: Path, count: int) -> None:
    """A unit set and a text set."""
    write_unit_set(folder / "units", utterances(count), CODEBOOK)
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for i in range(count):
            if i % 5 < 4:
                file.write(json.dumps({"question": question(i), "answer": answer(i)}) + "\n")


def measured(program: str, *arguments: object) -> dict[str, float]:
    """Run a program in a process of its own; seconds, and peak memory in MiB."""
    code = "import sys, time; from pathlib import Path; began = time.monotonic()\n" + program + (
        "\nfrom bench.memory import peak_memory, peak_memory_of_children"
        "\nprint('MEASURED', time.monotonic() - began, max(peak_memory(), peak_memory_of_children()))"
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT
    )
    _, seconds, size = done.stdout.splitlines()[-1].split()
    return {"seconds": float(seconds), "mib": float(size) / 2**20}


BUILD = (
    "from instruct_data import build; from instruct_data.splits import Splits\n"
    "place = Path(sys.argv[1])\n"
    "build.main(place / 'units', place / 'pairs.jsonl', sys.argv[2], Path(sys.argv[3]), chat_ratio=0.1, "
    "splits=Splits(0.01, 0.01), workers=int(sys.argv[4]))"
)
DESCRIBE = "from instruct_data import describe; describe.main(Path(sys.argv[1]), page=Path(sys.argv[1]) / 'd.html')"


def main(records: list[int] = [25_000, 100_000], out: Path | None = None) -> None:  # noqa: B006
    """Build sets of made corpora of several sizes.

    Args:
        records: utterances of each corpus
        out: results as json, beside the printed table
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    rows = []
    for count in records:
        with tempfile.TemporaryDirectory() as place:
            home = Path(place)
            made = time.monotonic()
            make_corpus(home, count)
            print(f"{count:,} utterances made in {time.monotonic() - made:.0f} s", file=sys.stderr)
            for workers in sorted({1, cores}):
                row = measured(BUILD, home, VOICE, home / f"sets{workers}", workers)
                counts = json.loads((home / f"sets{workers}" / "build.json").read_text())["counts"]
                written = sum(sum(tasks.values()) for tasks in counts.values())
                rows.append({"what": f"build, {workers} workers", "records": count, "conversations": written, **row})
            same = all(
                path.read_bytes() == (home / f"sets{cores}" / path.name).read_bytes()
                for path in (home / "sets1").iterdir()
            )
            if not same:
                raise SystemExit("another number of workers gave other bytes")
            rows.append(
                {"what": "describe", "records": count, "conversations": written, **measured(DESCRIBE, home / "sets1")}
            )
    print(f"{'':18} {'utterances':>11} {'conversations':>14} {'seconds':>9} {'conversations/s':>16} {'peak MiB':>9}")
    for row in rows:
        rate = row["conversations"] / row["seconds"]
        print(
            f"{row['what']:18} {row['records']:>11,} {row['conversations']:>14,} {row['seconds']:>9.1f} "
            f"{rate:>16,.0f} {row['mib']:>9.0f}"
        )
    print(f"{cores} cores; the same bytes with any number of workers; this process itself took "
          f"{peak_memory() / 2**20:.0f} MiB")  # fmt: skip
    if out:
        out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
