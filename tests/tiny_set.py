"""Tiny unit sets for tests: written without any audio."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from units.codebook import Codebook, Units
from units.dataset.unit_set import COMPLETION_FILE, UnitRecord, shard_path, write_shard
from units.runtime.files.atomic import written_whole


def tiny_codebook(size: int) -> Codebook:
    return Codebook(f"tiny-km{size}", "tiny", 2, size, 50.0, "none", "0123456789abcdef")


def record_of(
    name: str, frames: Sequence[int], size: int, text: str | None = None, speaker: str | None = None
) -> UnitRecord:
    """An utterance of one unit a frame."""
    return UnitRecord(
        name, Units.from_frames(frames, tiny_codebook(size)), 400 + 320 * (len(frames) - 1), text, speaker
    )


def write_set(folder: Path, records: list[UnitRecord], size: int) -> Path:
    """A complete unit set of two shards."""
    codebook, half = tiny_codebook(size), len(records) // 2
    for i, part in enumerate((records[:half], records[half:])):
        write_shard(shard_path(folder, i), part, codebook)
    seconds = sum(record.num_samples for record in records) / 16_000
    facts = {
        "codebook": json.loads(codebook.to_json()),
        "utterances": len(records),
        "refused": 0,
        "seconds": seconds,
        "shards": 2,
    }
    with written_whole(folder / COMPLETION_FILE) as file:
        json.dump(facts, file)
    return folder
