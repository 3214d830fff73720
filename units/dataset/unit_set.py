"""Unit sets: a folder of parquet shards, and `unit_set.json`, whose presence means that the set is complete.

Columns: id string, units list<uint16>, durations list<uint16>, num_samples int64, text, speaker and lang string, audio
string, start and duration float64. All but id and units are nullable. `audio` is the path of the audio file, relative
to the set's folder if the file is below it and else absolute; `start` and `duration` are seconds within it. Sets of
release 0.1.0 have no columns for audio, and are read as sets whose audio is unknown.

The codebook is in the metadata of every shard and in `unit_set.json`. Hugging Face datasets opens the shards with
load_dataset("parquet", data_files="FOLDER/*.parquet").
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from units.audio import SAMPLE_RATE
from units.codebook import Codebook, CodebookMismatch, Units
from units.corpus.manifest import is_plain_text, path_from
from units.runtime.files.atomic import written_whole
from units.runtime.files.json_files import FileError, FileReason, as_text, json_lines, read_json
from units.runtime.refusals import Reason, RefusedError, read_refusals

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("units", pa.list_(pa.uint16())),
        ("durations", pa.list_(pa.uint16())),
        ("num_samples", pa.int64()),
        ("text", pa.string()),
        ("speaker", pa.string()),
        ("lang", pa.string()),
        ("audio", pa.string()),
        ("start", pa.float64()),
        ("duration", pa.float64()),
    ]
)
COMPLETION_FILE = "unit_set.json"
REFUSED_FILE = "refused.jsonl"
LONGEST_RUN = 2**16 - 1  # frames: the longest run of one unit that uint16 holds, 22 minutes at 50 per second


class UnitSetReason(Reason):
    """Why the units of an utterance are refused."""

    LONG_RUN = "long_run"
    """one unit lasts longer than a shard can hold, as in a long silence"""
    DAMAGED_SHARD = "damaged_shard"
    """a shard is cut short or damaged"""
    OTHER_SHARD = "other_shard"
    """a parquet file that is not a shard of a unit set"""


class UnitSetError(RefusedError):
    """A file of a unit set cannot be used. `reason` is a UnitSetReason; the message names the file."""


@dataclass(frozen=True)
class UnitRecord:
    """One utterance of a unit set.

    num_samples: the length T of its wav; None if the units were not made from audio.
    audio: the path of its audio file; None if unknown. start, duration: the segment of the file, in seconds; a duration
    of None reaches to the end of the file.
    """

    id: str
    units: Units
    num_samples: int | None
    text: str | None = None
    speaker: str | None = None
    lang: str | None = None
    audio: Path | None = None
    start: float = 0.0
    duration: float | None = None


def shard_path(folder: Path, index: int) -> Path:
    """The file of one shard."""
    return folder / f"shard-{index:05d}.parquet"


def write_shard(path: Path, records: list[UnitRecord], codebook: Codebook) -> None:
    """Write one shard, which appears whole or not at all.

    A path of audio that is not Unicode cannot be written in parquet and is left out.
    """
    audio = [_audio_text(path.parent, record) for record in records]
    columns = {
        "id": [r.id for r in records],
        "units": [r.units.ids for r in records],
        "durations": [r.units.durations for r in records],
        "num_samples": [r.num_samples for r in records],
        **{name: [getattr(r, name) for r in records] for name in ("text", "speaker", "lang")},
        "audio": audio,
        "start": [None if where is None else r.start for r, where in zip(records, audio)],
        "duration": [None if where is None else r.duration for r, where in zip(records, audio)],
    }
    table = pa.table(columns, schema=SCHEMA).replace_schema_metadata({"codebook": codebook.to_json()})
    with written_whole(path, "wb") as file:
        pq.write_table(table, file, write_page_checksum=True)


def _audio_text(folder: Path, record: UnitRecord) -> str | None:
    text = None if record.audio is None else path_from(folder, record.audio)
    return text if text is not None and is_plain_text(text) else None


@dataclass(frozen=True)
class UnitSet:
    """A complete unit set on disk. Iterating yields its UnitRecords in order, with one shard at a time in memory."""

    folder: Path
    codebook: Codebook
    utterances: int
    seconds: float
    shards: int
    refused: int

    def table(self, index: int, columns: list[str] | None = None) -> pa.Table:
        """One shard as a table.

        Args:
            index: of the shard.
            columns: the columns to read; None reads all.

        Raises:
            FileNotFoundError: the shard is not there.
            UnitSetError: it is damaged, or not a shard.
            CodebookMismatch: it has another codebook than the set.
        """
        path = shard_path(self.folder, index)
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing; {self.folder / COMPLETION_FILE} counts {self.shards} shards")
        with _reading(path):
            table = _as_shard(pq.read_table(path, columns=columns, page_checksum_verification=True), path, columns)
        found = Codebook.from_json(table.schema.metadata[b"codebook"].decode("utf-8", "replace"), str(path))
        self.codebook.check_same(found, str(self.folder / COMPLETION_FILE), str(path))
        if found.size != self.codebook.size:
            raise UnitSetError(
                UnitSetReason.OTHER_SHARD,
                f"{path} has units of {found.size}, {self.folder / COMPLETION_FILE} of {self.codebook.size}",
            )
        return table

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """All shards as tables, one after the other."""
        return (self.table(index, columns) for index in range(self.shards))

    def __iter__(self) -> Iterator[UnitRecord]:
        for index in range(self.shards):
            yield from self.shard(index)

    def shard(self, index: int) -> Iterator[UnitRecord]:
        """The records of one shard, so that several processes can share a set."""
        path = shard_path(self.folder, index)
        for batch in self.table(index).to_batches(max_chunksize=256):
            with _reading(path):
                records = [self._record(row) for row in batch.to_pylist()]
            yield from records

    def _record(self, row: dict) -> UnitRecord:
        ids, durations = tuple(row.pop("units")), row.pop("durations")
        units = Units(ids, None if durations is None else tuple(durations), self.codebook)
        audio, start, duration = (row.pop(name, None) for name in ("audio", "start", "duration"))
        return UnitRecord(
            units=units,
            audio=None if audio is None else self.folder / audio,
            start=start or 0.0,
            duration=duration,
            **row,
        )

    def rows(self, index: int) -> int:
        """The number of records of one shard."""
        path = shard_path(self.folder, index)
        with _reading(path):
            return pq.read_metadata(path).num_rows

    def speakers(self) -> set[str]:
        """The speakers of all utterances that name one."""
        found: set[str | None] = set()
        for index in range(self.shards):
            with _reading(shard_path(self.folder, index)):
                found |= set(pc.unique(self.table(index, ["speaker"])["speaker"]).to_pylist())
        return {name for name in found if name is not None}

    def refused_by_reason(self) -> Counter[str]:
        """The number of utterances that were refused, by reason code."""
        path = self.folder / REFUSED_FILE
        if not path.exists():
            return Counter()
        return Counter(reason for _, reason, _ in read_refusals(row for _, row in json_lines(path)))

    def __len__(self) -> int:
        return self.utterances


def read_unit_set(folder: str | Path) -> UnitSet:
    """Open a unit set.

    Raises:
        FileNotFoundError: `unit_set.json` is missing, which means that extraction has not finished.
        FileError: it is damaged.
    """
    folder = Path(folder)
    path = folder / COMPLETION_FILE
    if not path.exists():
        raise FileNotFoundError(
            f"{folder} is not a complete unit set ({COMPLETION_FILE} is missing). Run units-extract SOURCE {folder} "
            "--encoder DIR; it continues where it stopped."
        )
    facts = read_json(path, FACTS)
    for name, least in (("utterances", 0), ("seconds", 0), ("shards", 0), ("refused", 0)):
        if not least <= facts[name] < 2**63:
            raise FileError(FileReason.INVALID_FIELD, f"{path}: {name} is {facts[name]}; it is at least {least}")
    codebook = Codebook.from_json(facts["codebook"], str(path))
    return UnitSet(folder, codebook, **{name: facts[name] for name in FACTS if name != "codebook"})


FACTS = {"codebook": dict, "utterances": int, "seconds": float | int, "shards": int, "refused": int}
REQUIRED = {"id", "units"}  # columns that are never null


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Name the shard in the errors of the parquet reader, which read other bytes than a writer wrote."""
    try:
        yield
    except (RefusedError, FileNotFoundError, CodebookMismatch):
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
        message = f"{path} is damaged, cut short or not a shard of a unit set ({' '.join(str(error).split())[:200]})"
        raise UnitSetError(UnitSetReason.DAMAGED_SHARD, f"{message}; delete it and extract again") from error


def _as_shard(table: pa.Table, path: Path, columns: Sequence[str] | None) -> pa.Table:
    """A table with the types of SCHEMA and no other columns. Raises UnitSetError if it is not a shard."""
    metadata = table.schema.metadata or {}
    wanted = set(columns or REQUIRED) & set(SCHEMA.names)
    if b"codebook" not in metadata or not wanted <= set(table.column_names):
        raise UnitSetError(
            UnitSetReason.OTHER_SHARD,
            f"{path} is not a shard of a unit set: it has the columns {table.column_names}"
            + ("" if b"codebook" in metadata else " and no codebook in its metadata"),
        )
    kept = table.select([name for name in SCHEMA.names if name in table.column_names])
    with _reading(path):
        shard = kept.cast(pa.schema([SCHEMA.field(name) for name in kept.column_names])).replace_schema_metadata(
            metadata
        )
        shard.validate(full=True)
    if any(shard[name].null_count for name in REQUIRED & wanted):
        raise UnitSetError(UnitSetReason.DAMAGED_SHARD, f"{path} is damaged: a row has no id or no units")
    return shard


def write_unit_set(folder: Path, records: Iterable[UnitRecord], codebook: Codebook, shard_size: int = 2000) -> UnitSet:
    """Write a unit set from a stream of records, for units that do not come from audio."""
    pending = iter(records)
    shards = 0
    while shard := list(itertools.islice(pending, shard_size)):
        write_shard(shard_path(folder, shards), shard, codebook)
        shards += 1
    return complete_unit_set(folder, shards, codebook)


def refusals_path(folder: Path, index: int) -> Path:
    """The list of what one shard left out, as JSON lines. It is written before the shard."""
    return folder / f"refused-{index:05d}.jsonl"


def join_shards(folder: Path, shards: int, codebook: Codebook, listed: Sequence[str] = ()) -> UnitSet:
    """Complete a set whose shards were written one by one, and join their lists of refusals in `refused.jsonl`.

    Args:
        folder: the set, with a shard and a list of refusals for each index below `shards`.
        shards: how many there are.
        codebook: of the units.
        listed: rows of inputs that were refused before they were dealt to shards.

    Raises: ValueError if everything was refused.
    """
    refused = list(listed)
    for index in range(shards):
        with refusals_path(folder, index).open("rb") as lines:  # only a line feed ends a line
            refused += [as_text(line, str(refusals_path(folder, index))) for line in lines]
    with written_whole(folder / REFUSED_FILE) as file:
        file.writelines(refused)
    return complete_unit_set(folder, shards, codebook, len(refused))


def complete_unit_set(folder: Path, shards: int, codebook: Codebook, refused: int = 0) -> UnitSet:
    """Count the records of the shards and write `unit_set.json`.

    Raises: ValueError if there is no record.
    """
    lengths = []
    for path in (shard_path(folder, index) for index in range(shards)):
        with _reading(path):
            lengths.append(pq.read_table(path, columns=["num_samples"])["num_samples"])
    utterances = sum(map(len, lengths))
    if not utterances:
        reason = f"every one of {refused} utterances was refused; see its {REFUSED_FILE}" if refused else "none came"
        raise ValueError(f"{folder} would hold no utterance: {reason}")
    facts = {
        "codebook": json.loads(codebook.to_json()),
        "utterances": utterances,
        "refused": refused,
        "seconds": round(sum(pc.sum(column).as_py() or 0 for column in lengths) / SAMPLE_RATE, 2),
        "shards": shards,
    }
    with written_whole(folder / COMPLETION_FILE) as file:
        json.dump(facts, file, indent=1)
    return read_unit_set(folder)
