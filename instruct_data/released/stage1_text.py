"""The released text files of the first stage: `<sosp><189><247>..<eosp>`, one utterance a line; to unit sets and back.

    python -m instruct_data.released.stage1_text train.txt units/train --codebook unit_encoder/codebook.json
    python -m instruct_data.released.stage1_text units/train train.txt

Such lines know neither durations nor who speaks; a unit set made of them has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from units import notation
from units.codebook import Codebook, Units
from units.dataset.unit_set import COMPLETION_FILE, UnitRecord, read_unit_set, write_unit_set
from units.runtime.gzipped import opened_to_write
from units.runtime.progress import progress
from units.runtime.refusals import Refusals, listed_refusals, numbered_lines


def read_stage1(path: str | Path, codebook: Codebook, refusals: Refusals) -> Iterator[UnitRecord]:
    """Stream the utterances; lines that are malformed are left out, counted, and named with their number.

    Args:
        path: text, compressed if it ends in .gz.
    """
    for number, line in numbered_lines(Path(path), refusals):
        try:
            units = notation.read(line.decode(), codebook.size)
        except ValueError as error:  # UnicodeDecodeError is one
            refusals.add(f"{path}:{number}", error)
            continue
        if not units:
            refusals.add(f"{path}:{number}", "no units between <sosp> and <eosp>")
            continue
        yield UnitRecord(f"line-{number}", Units(tuple(units), None, codebook), None)


def main(source: Path, out: Path, codebook: Path | None = None) -> None:
    """Turn a text file into a unit set, or a unit set into a text file.

    Args:
        source: what to read
        out: what to write; lines that are no units are listed beside it, in OUT.refused.jsonl
        codebook: codebook.json of the units of a text file; without it `source` is a unit set
    """
    if codebook is None:
        with opened_to_write(out) as file:
            for record in progress(read_unit_set(source), desc=f"writing {out.name}", unit="utterances"):
                file.write(f"{notation.spell(record.units.ids)}\n".encode())
        return
    units_of = Codebook.load(codebook)
    (out / COMPLETION_FILE).unlink(missing_ok=True)  # of a former run: a set is not complete before its last shard
    with listed_refusals(out.with_name(f"{out.name}.refused.jsonl")) as refusals:
        records = progress(read_stage1(source, units_of, refusals), desc=f"reading {source.name}", unit="lines")
        made = write_unit_set(out, records, units_of)
    for stale in sorted(out.glob("shard-*.parquet"))[made.shards :]:
        stale.unlink()
    print(f"{out}: {len(made)} utterances; {refusals}")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)
