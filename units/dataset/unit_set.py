"""Unit sets: a folder of parquet shards that any parquet reader opens, and `unit_set.json`, whose presence means complete.

Columns: id string, units list<uint16>, durations list<uint16>, num_samples int64, text, speaker, lang (all but id and
units nullable).
The codebook stands in the metadata of every shard and in `unit_set.json`. Hugging Face datasets opens the shards with
load_dataset("parquet", data_files="FOLDER/*.parquet").
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from units.audio import SAMPLE_RATE
from units.codebook import Codebook, Units
from units.runtime.atomic import written_whole
from units.runtime.refusals import Reason, read_refusals

SCHEMA = pa.schema(
    [
        ("id", pa.string()), ("units", pa.list_(pa.uint16())), ("durations", pa.list_(pa.uint16())),
        ("num_samples", pa.int64()), ("text", pa.string()), ("speaker", pa.string()), ("lang", pa.string()),
    ]
)  # fmt: skip
COMPLETION_FILE = "unit_set.json"
LONGEST_RUN = 2**16 - 1  # frames of one unit that the durations' type holds: 22 minutes at 50 a second


class UnitSetReason(Reason):
    """Why the units of an utterance are refused."""

    LONG_RUN = "long_run"
    """one unit lasts longer than a shard can hold, as in a long silence"""


@dataclass(frozen=True)
class UnitRecord:
    """One utterance of a unit set. num_samples is the length T of its wav; None where units came without one."""

    id: str
    units: Units
    num_samples: int | None
    text: str | None = None
    speaker: str | None = None
    lang: str | None = None


def shard_path(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:05d}.parquet"


def write_shard(path: Path, records: list[UnitRecord], codebook: Codebook) -> None:
    """Write one shard; it appears whole or not at all."""
    columns = {
        "id": [r.id for r in records],
        "units": [r.units.ids for r in records],
        "durations": [r.units.durations for r in records],
        "num_samples": [r.num_samples for r in records],
        **{name: [getattr(r, name) for r in records] for name in ("text", "speaker", "lang")},
    }
    table = pa.table(columns, schema=SCHEMA).replace_schema_metadata({"codebook": codebook.to_json()})
    with written_whole(path, "wb") as file:
        pq.write_table(table, file)


@dataclass(frozen=True)
class UnitSet:
    """A complete unit set on disk. Iterating yields its UnitRecords in order, a shard at a time in memory."""

    folder: Path
    codebook: Codebook
    utterances: int
    seconds: float
    shards: int
    refused: int

    def table(self, index: int, columns: list[str] | None = None) -> pa.Table:
        """One shard, for whoever takes whole columns; only those named, if any are.

        Raises: CodebookMismatch if it is not of the set's codebook.
        """
        path = shard_path(self.folder, index)
        table = pq.read_table(path, columns=columns)
        found = Codebook.from_json(table.schema.metadata[b"codebook"].decode())
        self.codebook.check_same(found, str(self.folder), str(path))
        return table

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Its shards, one after the other."""
        return (self.table(index, columns) for index in range(self.shards))

    def __iter__(self) -> Iterator[UnitRecord]:
        for index in range(self.shards):
            yield from self.shard(index)

    def shard(self, index: int) -> Iterator[UnitRecord]:
        """The records of one shard, so that several processes can share a set."""
        for batch in self.table(index).to_batches(max_chunksize=256):
            for row in batch.to_pylist():
                ids, durations = tuple(row.pop("units")), row.pop("durations")
                units = Units(ids, None if durations is None else tuple(durations), self.codebook)
                yield UnitRecord(units=units, **row)

    def rows(self, index: int) -> int:
        """How many records one shard has."""
        return pq.read_metadata(shard_path(self.folder, index)).num_rows

    def speakers(self) -> set[str]:
        """Everybody who speaks in it; utterances that name nobody are left out."""
        columns = (table["speaker"] for table in self.tables(["speaker"]))
        return {name for column in columns for name in pc.unique(column).to_pylist() if name is not None}

    def refused_by_reason(self) -> Counter[str]:
        """How many utterances were refused, by reason code."""
        path = self.folder / "refused.jsonl"
        if not path.exists():
            return Counter()
        with path.open(encoding="utf-8") as lines:
            return Counter(reason for _, reason, _ in read_refusals(lines))

    def __len__(self) -> int:
        return self.utterances


def read_unit_set(folder: str | Path) -> UnitSet:
    """Open a unit set.

    Raises: FileNotFoundError if `unit_set.json` is not there, which means that extraction has not finished.
    """
    folder = Path(folder)
    marker = folder / COMPLETION_FILE
    if not marker.exists():
        raise FileNotFoundError(
            f"{folder} is not a complete unit set ({COMPLETION_FILE} is missing). Run units-extract SOURCE {folder} --encoder DIR; "
            "it goes on where it stopped."
        )
    facts = json.loads(marker.read_text(encoding="utf-8"))
    return UnitSet(
        folder,
        Codebook.from_json(facts["codebook"]),
        **{name: facts[name] for name in ("utterances", "seconds", "shards", "refused")},
    )


def write_unit_set(folder: Path, records: Iterable[UnitRecord], codebook: Codebook, shard_size: int = 2000) -> UnitSet:
    """Stream records that some other source than audio gives into a unit set."""
    pending = iter(records)
    shards = 0
    while shard := list(itertools.islice(pending, shard_size)):
        write_shard(shard_path(folder, shards), shard, codebook)
        shards += 1
    return write_marker(folder, shards, codebook)


def refusals_path(folder: Path, index: int) -> Path:
    """What a shard left out: JSON lines, written before the shard itself."""
    return folder / f"refused-{index:05d}.jsonl"


def join_shards(folder: Path, shards: int, codebook: Codebook, listed: Sequence[str] = ()) -> UnitSet:
    """Complete a set whose shards were written one by one, each with its refusals; `refused.jsonl` then has them all.

    Args:
        listed: lines of what was refused before there were shards.

    Raises: ValueError if everything was refused.
    """
    refused = list(listed)
    for index in range(shards):
        refused += refusals_path(folder, index).read_text(encoding="utf-8").splitlines(True)
    with written_whole(folder / "refused.jsonl") as file:
        file.writelines(refused)
    return write_marker(folder, shards, codebook, len(refused))


def write_marker(folder: Path, shards: int, codebook: Codebook, refused: int = 0) -> UnitSet:
    """Count the shards of a set and say that it is complete.

    Raises: ValueError if there is not one record.
    """
    lengths = [pq.read_table(shard_path(folder, i), columns=["num_samples"])["num_samples"] for i in range(shards)]
    facts = {"codebook": json.loads(codebook.to_json()), "utterances": sum(map(len, lengths)), "refused": refused,
             "seconds": round(sum(pc.sum(column).as_py() or 0 for column in lengths) / SAMPLE_RATE, 2),
             "shards": shards}  # fmt: skip
    if not facts["utterances"]:
        why = f"every one of {refused} utterances was refused; see its refused.jsonl" if refused else "none came"
        raise ValueError(f"{folder} would hold no utterance: {why}")
    with written_whole(folder / COMPLETION_FILE) as file:
        json.dump(facts, file, indent=1)
    return read_unit_set(folder)
