"""SpeechGPT's released text files of stage 1, one utterance a line, to unit sets and back.

    instruct-stage1-text train.txt units/train --codebook unit_encoder/codebook.json
    instruct-stage1-text units/train train.txt

A line is `<sosp><189><247>..<eosp>`. It has no durations, no transcript and no speaker, so the unit set has none.
Source: the data of Zhang et al. 2023 (arXiv 2305.11000).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from instruct_data.released.reasons import ReleasedError, ReleasedReason
from instruct_data.released.spelled_units import read_units
from units import notation
from units.codebook import Codebook, Units
from units.runtime.command import SOME_REFUSED, command
from units.runtime.files.gzipped import opened_to_write
from units.runtime.progress import progress
from units.runtime.refusals import Refusals, listed_refusals, numbered_lines

if TYPE_CHECKING:
    from units.dataset.unit_set import UnitRecord


def read_stage1(path: str | Path, codebook: Codebook, refusals: Refusals) -> Iterator[UnitRecord]:
    """Stream the utterances of a released text file. A malformed line is refused and listed with its number.

    Args:
        path: the text file, compressed if its name ends in .gz.
        codebook: of the units.
    """
    from units.dataset.unit_set import UnitRecord

    for number, line in numbered_lines(Path(path), refusals):
        try:
            units = _parse_line(line, codebook.size)
        except ReleasedError as error:
            refusals.add(f"{path}:{number}", error)
            continue
        yield UnitRecord(f"line-{number}", Units(units, None, codebook), None)


def _parse_line(line: bytes, size: int) -> tuple[int, ...]:
    """The units of one line.

    Raises:
        ReleasedError: if the line is not a sequence of units below `size`.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise ReleasedError(ReleasedReason.NOT_UTF8, str(error)) from error
    return read_units(text, size)


@command("instruct-stage1-text")
def main(source: Path, out: Path, codebook: Path | None = None) -> int:
    """Convert a released text file to a unit set, or a unit set to a text file.

    Args:
        source: the text file or unit set to read
        out: the unit set or text file to write; refused lines are listed in OUT.refused.jsonl
        codebook: codebook.json of the units of a text file; without it, `source` is a unit set
    """
    if codebook is None:
        _write_text(source, out)
        return 0
    return _write_units(source, out, Codebook.load(codebook))


def _write_text(source: Path, out: Path) -> None:
    from units.dataset.unit_set import read_unit_set

    with opened_to_write(out) as file:
        for record in progress(read_unit_set(source), desc=f"writing {out.name}", unit="utterances"):
            file.write(f"{notation.spell(record.units.ids)}\n".encode())


def _write_units(source: Path, out: Path, codebook: Codebook) -> int:
    from units.dataset.unit_set import COMPLETION_FILE, write_unit_set

    (out / COMPLETION_FILE).unlink(missing_ok=True)  # of an earlier run: the set is complete after its last shard
    with listed_refusals(out.with_name(f"{out.name}.refused.jsonl")) as refusals:
        records = progress(read_stage1(source, codebook, refusals), desc=f"reading {source.name}", unit="lines")
        made = write_unit_set(out, records, codebook)
    for stale in sorted(out.glob("shard-*.parquet"))[made.shards :]:  # of an earlier, longer run
        stale.unlink()
    print(f"{out}: {len(made)} utterances; {refusals}")
    return SOME_REFUSED if refusals.counts else 0


if __name__ == "__main__":
    main.cli()
