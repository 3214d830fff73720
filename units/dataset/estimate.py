"""The estimate of `units-extract --dry-run`: how long a corpus is, and how long its extraction would take."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from units.audio import SAMPLE_RATE
from units.corpus.decoding import decoded
from units.corpus.sources import Listing
from units.dataset.content import Content
from units.runtime.refusals import Refusal

SAMPLE_FILES = 64  # decoded to estimate the length of the corpus
SAMPLE_SECONDS = 60.0  # of them, encoded to measure the speed


@dataclass(frozen=True)
class Estimate:
    """What a sample shows.

    utterances, refused: of the listing. sample, unreadable: files that were decoded, and that could not be.
    hours: of audio in the whole corpus. speed: seconds of audio encoded per second; 0 if nothing could be read.
    """

    content: str
    utterances: int
    refused: int
    sample: int
    unreadable: int
    hours: float
    speed: float

    def report(self, shards: int, missing: int) -> str:
        """Lines for people. missing: of all shards, those that are not written yet."""
        if not self.speed:
            return f"{self.utterances} utterances; none of a sample of {self.sample} can be read"
        return (
            f"{self.utterances} utterances, about {self.hours:.2f} hours of audio ({self.unreadable} of a sample of "
            f"{self.sample} cannot be read, {self.refused} refused by name); {shards} shards, {missing} to do\n"
            f"{self.content} at about {self.speed:.0f} times real time on this machine: "
            f"{self.hours * missing / max(1, shards) / self.speed:.2f} hours"
        )


def estimate(listing: Listing, content: Content, workers: int, processes: int) -> Estimate:
    """Decode a sample of a listing and encode a minute of it.

    Args:
        listing: the corpus.
        content: what would be extracted, on its device.
        workers: threads that decode.
        processes: that would share the work.
    """
    rows = listing.utterances
    sample = [rows[int(i)] for i in np.linspace(0, len(rows) - 1, min(len(rows), SAMPLE_FILES))] if rows else []
    wavs: list[np.ndarray] = []
    seconds, read = 0.0, 0
    for wav in decoded(sample, workers, content.grid):
        if not isinstance(wav, Refusal):
            if seconds < SAMPLE_SECONDS:
                wavs.append(wav[: round(SAMPLE_SECONDS * SAMPLE_RATE)])
            seconds += len(wav) / SAMPLE_RATE
            read += 1
    return Estimate(
        content.name,
        len(rows),
        len(listing.refused),
        len(sample),
        len(sample) - read,
        hours=seconds * len(rows) / max(1, len(sample)) / 3600,
        speed=_speed(content, wavs, processes) if wavs else 0.0,
    )


def _speed(content: Content, wavs: list[np.ndarray], processes: int) -> float:
    """Seconds of audio encoded per second."""
    content.encode(wavs[:1])  # the first call warms up
    began = time.monotonic()
    content.encode(wavs)
    speed = sum(map(len, wavs)) / SAMPLE_RATE / (time.monotonic() - began)
    return speed * (processes if content.device.type == "cuda" else 1)  # on a CPU, one call uses all cores
