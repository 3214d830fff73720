"""The `units-export` command: a unit set as a text file that another program reads.

    units-export units/train train.txt                      # q1|12 12 12 7    GSLM, speech-resynthesis
    units-export units/train train.km --format km           # 12 12 12 7       fairseq's HuBERT labels
    units-export units/train train.txt --format spelled     # <sosp><12><7><eosp>    SpeechGPT's stage 1
    units-export units/train features.jsonl --format slamkit

Lines are in the order of the set. If a format holds no ids, OUT.ids holds them, one per line.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from units.notation import spell
from units.runtime.command import command
from units.runtime.files.atomic import written_whole
from units.runtime.progress import progress

if TYPE_CHECKING:
    from units.dataset.unit_set import UnitRecord

Rate = Literal["full", "reduced"]


@dataclass(frozen=True)
class ExportFormat:
    """The format of one program.

    line: (record, units at the chosen rate) -> one line of text.
    rates: the rates it can hold, its usual one first: "full" is a unit per frame, "reduced" has runs collapsed.
    holds_id: whether the line holds the id of the utterance.
    """

    line: Callable[[UnitRecord, Sequence[int]], str]
    rates: tuple[Rate, ...]
    holds_id: bool


def lines_line(record: UnitRecord, units: Sequence[int]) -> str:
    """`id|12 12 7`, as GSLM's quantize_with_kmeans.py writes it (a unit per frame) and its later steps read it."""
    if "|" in record.id:
        raise ValueError(f"id {record.id!r} has a | or a line break, which id|units cannot hold; use --format slamkit")
    return f"{id_line(record)}|{km_line(record, units)}"


def id_line(record: UnitRecord) -> str:
    """An id that is one line of text. Raises ValueError for one that some reader of lines would see as two."""
    if record.id.splitlines() != [record.id]:
        raise ValueError(
            f"id {record.id!r} is empty or has a line break, which a line of text cannot hold; use --format slamkit"
        )
    return record.id


def km_line(record: UnitRecord, units: Sequence[int]) -> str:
    """`12 12 7`, as fairseq's simple_kmeans/dump_km_label.py writes it: always a unit per frame."""
    return " ".join(map(str, units))


def spelled_line(record: UnitRecord, units: Sequence[int]) -> str:
    """`<sosp><12><7><eosp>`, as the lines of SpeechGPT's data/stage1/train.txt."""
    return spell(units)


def slamkit_line(record: UnitRecord, units: Sequence[int]) -> str:
    """A line of slamkit's features.jsonl (cli/extract_features.py): collapsed units, their durations, a name."""
    return json.dumps({"units": units, "duration": record.units.durations, "file_name": record.id})


FORMATS = {
    "lines": ExportFormat(lines_line, ("full", "reduced"), holds_id=True),
    "km": ExportFormat(km_line, ("full",), holds_id=False),
    "spelled": ExportFormat(spelled_line, ("reduced", "full"), holds_id=False),
    "slamkit": ExportFormat(slamkit_line, ("reduced",), holds_id=True),
}


def export(units: str | Path, out: str | Path, format: str = "lines", rate: Rate | None = None) -> int:
    """Write a unit set as text; the file appears whole or not at all.

    Args:
        units: a complete unit set.
        out: the file to write.
        format: a key of FORMATS.
        rate: "full" or "reduced"; None is the usual one of the format.

    Returns: the number of lines.

    Raises:
        ValueError: an unknown format, a rate that the format cannot hold, or an id that it cannot hold.
        FileNotFoundError: the set is not complete.
    """
    from units.dataset.unit_set import read_unit_set

    if format not in FORMATS:
        raise ValueError(f"no format is called {format!r}; known are {', '.join(FORMATS)}")
    chosen, unit_set = FORMATS[format], read_unit_set(units)
    if rate and rate not in chosen.rates:
        raise ValueError(f"{format} holds {' or '.join(chosen.rates)} units only, not {rate}")
    full = (rate or chosen.rates[0]) == "full"
    out = Path(out)
    with contextlib.ExitStack() as files:
        text = files.enter_context(written_whole(out))
        ids = None if chosen.holds_id else files.enter_context(written_whole(out.with_name(out.name + ".ids")))
        for record in progress(unit_set, desc=f"{format} of {unit_set.folder.name}", unit="utterances"):
            text.write(chosen.line(record, record.units.frames() if full else record.units.ids) + "\n")
            if ids:
                ids.write(id_line(record) + "\n")
    return len(unit_set)


@command("units-export")
def main(units: Path, out: Path, format: str = "lines", rate: Rate | None = None) -> None:
    """Write a unit set as text for other programs.

    Args:
        units: a unit set, made by units-extract
        out: the file to write
        format: lines (id|12 7 7), km (12 7 7), spelled (<sosp><12><7><eosp>) or slamkit (its features.jsonl)
        rate: full is a unit per frame, reduced has runs collapsed; the usual one of the format if not given
    """
    from units.dataset.unit_set import read_unit_set

    count = export(units, out, format, rate)
    print(f"{count} utterances of {read_unit_set(units).codebook.name} -> {out}")


if __name__ == "__main__":
    main.cli()
