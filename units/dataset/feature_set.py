"""Feature sets: a folder of encoder states, and `feature_set.json`, whose presence means that the set is complete.

    units-extract train.jsonl features/train --features --encoder starter
    features = read_feature_set("features/train")
    features.states(features.find(Path("wav/q1.wav")))       # float16 (N, D), mapped from disk

Each shard is `shard-00000.npy`, float16 (all N, D), and `shard-00000.parquet` with a row for each utterance: id string,
frames and num_samples int64, text, speaker, lang and audio string, start and duration float64. Paths of audio are as in
unit sets.

N frames of an utterance, D width of the states.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from units.audio import SAMPLE_RATE, FrameGrid
from units.corpus.manifest import is_plain_text, path_from
from units.dataset.content import Content, Row
from units.dataset.unit_set import REFUSED_FILE, refusals_path, shard_path
from units.encoder.unit_encoder import Features
from units.runtime.files.atomic import written_whole
from units.runtime.files.json_files import as_text, json_lines, read_json
from units.runtime.refusals import Reason, RefusedError, counted, read_refusals

COMPLETION_FILE = "feature_set.json"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("frames", pa.int64()),
        ("num_samples", pa.int64()),
        ("text", pa.string()),
        ("speaker", pa.string()),
        ("lang", pa.string()),
        ("audio", pa.string()),
        ("start", pa.float64()),
        ("duration", pa.float64()),
    ]
)
FACTS = {
    "encoder": str,
    "layer": int,
    "window": str,
    "manner": str,
    "fingerprint": str,
    "width": int,
    "hop": int,
    "receptive_field": int,
    "utterances": int,
    "frames": int,
    "seconds": float | int,
    "shards": int,
    "refused": int,
}
Recording = tuple[str, float, float | None]  # absolute path, start and duration in seconds


class FeatureSetReason(Reason):
    """Why a feature set, or states in it, cannot be used."""

    DAMAGED_SHARD = "damaged_shard"
    """a shard is missing, cut short or damaged"""
    NOT_FINITE = "not_finite"
    """the encoder gave states that are not numbers, or too large for half precision"""
    NOT_IN_SET = "not_in_set"
    """a recording that is not in the set"""


class FeatureSetError(RefusedError):
    """A feature set cannot be used. `reason` is a FeatureSetReason; the message names the file."""


class StateContent(Content):
    """States of an encoder, as extraction writes them."""

    noun = "states"
    completion_file = COMPLETION_FILE

    def __init__(self, features: Features, fingerprint: str, window: str) -> None:
        """
        Args:
            fingerprint: of the encoder's weights. window: as the encoder was opened with.
        """
        self.features = features
        self.facts: dict[str, Any] = {
            "encoder": features.name,
            "layer": features.layer,
            "window": window,
            "manner": features.manner,
            "fingerprint": fingerprint,
            "width": features.dim,
            "hop": features.grid.hop,
            "receptive_field": features.grid.receptive_field,
        }

    @property
    def name(self) -> str:
        return f"states of {self.features.name}, layer {self.features.layer},"

    @property
    def device(self) -> torch.device:
        return self.features.device

    @property
    def grid(self) -> FrameGrid:
        return self.features.grid

    def plan(self) -> dict[str, object]:
        return {name: value for name, value in self.facts.items() if name != "encoder"}

    def encode(self, wavs: list[np.ndarray]) -> Sequence[np.ndarray]:
        return [halves(one) for one in self.features(wavs)]

    def check(self, made: np.ndarray) -> None:
        if not np.isfinite(made).all():
            raise RefusedError(FeatureSetReason.NOT_FINITE, "its states are not finite in half precision")

    def write(self, path: Path, rows: list[Row]) -> None:
        width = self.features.dim
        with written_whole(path.with_suffix(".npy"), "wb") as file:
            np.save(file, np.concatenate([np.empty((0, width), np.float16), *(made for _, _, made in rows)]))
        audio = [path_from(path.parent, u.audio) for u, _, _ in rows]
        columns = {
            "id": [u.id for u, _, _ in rows],
            "frames": [len(made) for _, _, made in rows],
            "num_samples": [samples for _, samples, _ in rows],
            **{name: [getattr(u, name) for u, _, _ in rows] for name in ("text", "speaker", "lang")},
            "audio": [text if is_plain_text(text) else None for text in audio],
            "start": [u.start for u, _, _ in rows],
            "duration": [u.duration for u, _, _ in rows],
        }
        with written_whole(path, "wb") as file:
            pq.write_table(pa.table(columns, schema=SCHEMA), file, write_page_checksum=True)

    def join(self, folder: Path, shards: int, listed: Sequence[str]) -> None:
        refused = list(listed)
        for index in range(shards):
            with refusals_path(folder, index).open("rb") as lines:
                refused += [as_text(line, str(refusals_path(folder, index))) for line in lines]
        with written_whole(folder / REFUSED_FILE) as file:
            file.writelines(refused)
        tables = [_table(folder, index) for index in range(shards)]
        utterances = sum(map(len, tables))
        if not utterances:
            raise ValueError(f"{folder} would hold no utterance: {len(refused)} were refused; see its {REFUSED_FILE}")
        frames, samples = (sum(sum(table[name].to_pylist()) for table in tables) for name in ("frames", "num_samples"))
        counts = {
            "utterances": utterances,
            "frames": frames,
            "seconds": round(samples / SAMPLE_RATE, 2),
            "shards": shards,
            "refused": len(refused),
        }
        with written_whole(folder / COMPLETION_FILE) as file:
            json.dump({**self.facts, **counts}, file, indent=1)

    @staticmethod
    def report(folder: Path) -> tuple[int, float, int, str]:
        made = read_feature_set(folder)
        path = folder / REFUSED_FILE
        reasons = Counter(reason for _, reason, _ in read_refusals(row for _, row in json_lines(path)))
        return made.utterances, made.seconds, made.refused, counted(reasons)


@dataclass(frozen=True)
class Span:
    """Where the states of a recording lie: rows of a shard."""

    shard: int
    start: int
    frames: int


@dataclass
class FeatureSet:
    """A complete feature set on disk.

    encoder, layer, window, fingerprint: what the states are of. width: D. It can be sent to other processes: what it
    has mapped is not.
    """

    folder: Path
    encoder: str
    layer: int
    window: str
    manner: str
    fingerprint: str
    width: int
    grid: FrameGrid
    utterances: int
    frames: int
    seconds: float
    shards: int
    refused: int
    _mapped: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)
    _spans: dict[Recording, Span] = field(default_factory=dict, repr=False, compare=False)

    @property
    def dim(self) -> int:
        """Width of the states, as Features names it."""
        return self.width

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": {}, "_spans": {}}

    def states(self, span: Span) -> np.ndarray:
        """The states of a recording, float16 (N, D); not copied.

        Raises: FeatureSetError if the shard is missing or damaged.
        """
        if span.shard not in self._mapped:
            self._mapped[span.shard] = _states(self.folder, span.shard, self.width)
        found = self._mapped[span.shard][span.start : span.start + span.frames]
        if len(found) < span.frames:
            path = shard_path(self.folder, span.shard).with_suffix(".npy")
            raise FeatureSetError(FeatureSetReason.DAMAGED_SHARD, f"{path} is cut short; delete it and extract again")
        return found

    def find(self, audio: str | Path, start: float = 0.0, duration: float | None = None) -> Span:
        """Where the states of a recording lie.

        Args:
            audio: its file. start, duration: the segment of it, in seconds.

        Raises: FeatureSetError if it is not in the set.
        """
        if not self._spans:
            self._spans.update(self._read_spans())
        span = self._spans.get(recording(audio, start, duration))
        if span is None:
            raise FeatureSetError(
                FeatureSetReason.NOT_IN_SET, f"{audio} ({start} s, {duration}) is not in the feature set {self.folder}"
            )
        return span

    def _read_spans(self) -> dict[Recording, Span]:
        found: dict[Recording, Span] = {}
        for index in range(self.shards):
            table = _table(self.folder, index)
            at = 0
            for audio, start, duration, frames in zip(
                *(table[name].to_pylist() for name in ("audio", "start", "duration", "frames"))
            ):
                if audio is not None:
                    found[recording(self.folder / audio, start, duration)] = Span(index, at, frames)
                at += frames
        return found


def recording(audio: str | Path, start: float, duration: float | None) -> Recording:
    """A recording as feature sets look it up."""
    return str(Path(audio).resolve()), float(start), duration


def read_feature_set(folder: str | Path) -> FeatureSet:
    """Open a feature set.

    Raises:
        FileNotFoundError: `feature_set.json` is missing, which means that extraction has not finished.
        units.runtime.files.json_files.FileError: it is damaged.
    """
    folder = Path(folder)
    path = folder / COMPLETION_FILE
    if not path.exists():
        raise FileNotFoundError(
            f"{folder} is not a complete feature set ({COMPLETION_FILE} is missing). Run units-extract SOURCE {folder} "
            "--features --encoder ENCODER; it continues where it stopped."
        )
    facts = read_json(path, FACTS)
    grid = FrameGrid(facts.pop("hop"), facts.pop("receptive_field"))
    return FeatureSet(folder, grid=grid, **{name: facts[name] for name in FACTS if name in facts})


def halves(states: Any) -> np.ndarray:
    """Encoder states as they are kept, and as training reads them: float16 (N, D)."""
    return states.half().cpu().numpy()


def _table(folder: Path, index: int) -> pa.Table:
    path = shard_path(folder, index)
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        return table.select(SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        message = f"{path} is missing, damaged or not a shard of a feature set ({' '.join(str(error).split())[:200]})"
        raise FeatureSetError(FeatureSetReason.DAMAGED_SHARD, f"{message}; delete it and extract again") from error


def _states(folder: Path, index: int, width: int) -> np.ndarray:
    path = shard_path(folder, index).with_suffix(".npy")
    try:
        states = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FeatureSetError(
            FeatureSetReason.DAMAGED_SHARD, f"{path} is missing or damaged ({error}); delete it and extract again"
        ) from error
    if states.dtype != np.float16 or states.ndim != 2 or states.shape[1] != width:
        raise FeatureSetError(
            FeatureSetReason.DAMAGED_SHARD,
            f"{path} holds {states.dtype} {states.shape}, not float16 of width {width}; delete it and extract again",
        )
    return states
