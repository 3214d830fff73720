"""What the shards of a set hold, as extraction asks for it: units of an encoder, or its states (feature_set.py)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from units.audio import FrameGrid
from units.corpus.manifest import Utterance
from units.dataset.unit_set import (
    COMPLETION_FILE,
    LONGEST_RUN,
    UnitRecord,
    UnitSetReason,
    join_shards,
    read_unit_set,
    write_shard,
)
from units.encoder.unit_encoder import UnitEncoder
from units.runtime.refusals import RefusedError, counted

Row = tuple[Utterance, int, Any]  # an utterance, the length T of its wav, and what was made of it


class Content(ABC):
    """What extraction makes of wavs, and how a shard of it is written."""

    noun: str
    """For progress bars."""
    completion_file: str
    """Of a set: written last."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What is extracted, as a phrase."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Of the encoder."""

    @property
    @abstractmethod
    def grid(self) -> FrameGrid:
        """Frames of a wav."""

    @abstractmethod
    def plan(self) -> dict[str, object]:
        """What decides the content, besides the utterances."""

    @abstractmethod
    def encode(self, wavs: list[np.ndarray]) -> Sequence[Any]:
        """What is made of each wav (T,)."""

    @abstractmethod
    def check(self, made: Any) -> None:
        """Raise RefusedError if what was made of a wav cannot be written."""

    @abstractmethod
    def write(self, path: Path, rows: list[Row]) -> None:
        """Write a shard; the file at `path` is written last, whole or not at all."""

    @abstractmethod
    def join(self, folder: Path, shards: int, listed: Sequence[str]) -> None:
        """Complete a set, once all its shards are there. listed: rows of inputs that were refused before."""

    @staticmethod
    @abstractmethod
    def report(folder: Path) -> tuple[int, float, int, str]:
        """Of a complete set: utterances, seconds, refused, and a phrase that counts the refused by reason."""


class UnitContent(Content):
    """Units of an encoder."""

    noun = "units"
    completion_file = COMPLETION_FILE

    def __init__(self, encoder: UnitEncoder) -> None:
        self.encoder = encoder

    @property
    def name(self) -> str:
        return f"units of {self.encoder.codebook.name}"

    @property
    def device(self) -> torch.device:
        return self.encoder.features.device

    @property
    def grid(self) -> FrameGrid:
        return self.encoder.features.grid

    def plan(self) -> dict[str, object]:
        return {"codebook": self.encoder.codebook.fingerprint, "manner": self.encoder.features.manner}

    def encode(self, wavs: list[np.ndarray]) -> Sequence[Any]:
        return self.encoder.encode_batch(wavs)

    def check(self, made: Any) -> None:
        if made.durations and max(made.durations) > LONGEST_RUN:
            raise RefusedError(
                UnitSetReason.LONG_RUN, f"one unit lasts for {max(made.durations)} frames; the recording may be silent"
            )

    def write(self, path: Path, rows: list[Row]) -> None:
        records = [
            UnitRecord(u.id, units, samples, u.text, u.speaker, u.lang, u.audio, u.start, u.duration)
            for u, samples, units in rows
        ]
        write_shard(path, records, self.encoder.codebook)

    def join(self, folder: Path, shards: int, listed: Sequence[str]) -> None:
        join_shards(folder, shards, self.encoder.codebook, listed)

    @staticmethod
    def report(folder: Path) -> tuple[int, float, int, str]:
        made = read_unit_set(folder)
        return len(made), made.seconds, made.refused, counted(made.refused_by_reason())


def content_of(source: UnitEncoder | Content) -> Content:
    """The content that an encoder gives: units, if it is a unit encoder."""
    return UnitContent(source) if isinstance(source, UnitEncoder) else source
