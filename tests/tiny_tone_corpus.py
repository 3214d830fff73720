"""A corpus of utterances whose units are tones."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
from tiny_vocoders import CODEBOOK, draw_units

from units.audio import HOP, num_frames, save_wav
from units.codebook import Codebook, Units
from units.corpus.manifest import Utterance
from units.dataset.unit_set import COMPLETION_FILE, UnitRecord, shard_path, write_shard


def make_pairs(folder: Path, count: int = 6) -> list[tuple[Utterance, Units]]:
    """Utterances in which unit u is a tone of 200 + 150 u Hz; the first is shorter than a crop."""
    draw, pairs = random.Random(3), []
    for i in range(count):
        units = Units.from_frames([0, 0, 5, 5, 5], CODEBOOK) if i == 0 else draw_units(draw)
        frequency = np.repeat([200 + 150 * unit for unit in units.frames()], HOP)
        wav = np.sin(2 * np.pi * np.cumsum(frequency) / 16_000).astype(np.float32) * 0.5
        wav = np.concatenate([wav, wav[: 400 - HOP]])
        path = save_wav(folder / f"{i}.wav", wav)
        pairs.append((Utterance(id=f"u{i}", audio=path, speaker="tone"), units))
        assert num_frames(len(wav)) == sum(units.durations or ())
    return pairs


def write_unit_set(folder: Path, records: list[UnitRecord], codebook: Codebook = CODEBOOK) -> Path:
    """A complete unit set of one shard."""
    write_shard(shard_path(folder, 0), records, codebook)
    facts = {"utterances": len(records), "seconds": 1.0, "shards": 1, "refused": 0}
    (folder / COMPLETION_FILE).write_text(json.dumps({"codebook": json.loads(codebook.to_json()), **facts}))
    return folder
