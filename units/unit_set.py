"""Unit sets: a folder of parquet shards that any parquet reader opens, and `unit_set.json`, whose presence means complete.

Columns: id string, units list<uint16>, durations list<uint16>, num_samples int64, text, speaker, lang (nullable).
The codebook stands in the metadata of every shard and in `unit_set.json`. Hugging Face datasets opens the shards with
load_dataset("parquet", data_files="FOLDER/*.parquet").
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from units.codebook import Codebook, Units
from units.manifest import written_whole

SCHEMA = pa.schema(
    [
        ("id", pa.string()), ("units", pa.list_(pa.uint16())), ("durations", pa.list_(pa.uint16())),
        ("num_samples", pa.int64()), ("text", pa.string()), ("speaker", pa.string()), ("lang", pa.string()),
    ]
)  # fmt: skip
MARKER = "unit_set.json"


@dataclass(frozen=True)
class UnitRecord:
    """One utterance of a unit set. num_samples is the length T of its wav."""

    id: str
    units: Units
    num_samples: int
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

    def tables(self) -> Iterator[pa.Table]:
        """Its shards, for whoever takes whole columns.

        Raises: CodebookMismatch if a shard is not of the set's codebook.
        """
        for index in range(self.shards):
            path = shard_path(self.folder, index)
            table = pq.read_table(path)
            found = Codebook.from_json(table.schema.metadata[b"codebook"].decode())
            self.codebook.check_same(found, str(self.folder), str(path))
            yield table

    def __iter__(self) -> Iterator[UnitRecord]:
        for table in self.tables():
            for row in table.to_pylist():
                units = Units(tuple(row.pop("units")), tuple(row.pop("durations")), self.codebook)
                yield UnitRecord(units=units, **row)

    def __len__(self) -> int:
        return self.utterances


def read_unit_set(folder: str | Path) -> UnitSet:
    """Open a unit set.

    Raises: FileNotFoundError if `unit_set.json` is not there, which means that extraction has not finished.
    """
    folder = Path(folder)
    marker = folder / MARKER
    if not marker.exists():
        raise FileNotFoundError(
            f"{folder} is not a complete unit set ({MARKER} is missing). Run units-extract SOURCE {folder} --encoder DIR; "
            "it goes on where it stopped."
        )
    facts = json.loads(marker.read_text(encoding="utf-8"))
    return UnitSet(
        folder,
        Codebook.from_json(facts["codebook"]),
        **{name: facts[name] for name in ("utterances", "seconds", "shards", "refused")},
    )
