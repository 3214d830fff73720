"""Audio read ahead of whoever computes on it: the wav of each row, in order, or why there is none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from units.audio import AudioError, FrameGrid, load_wav
from units.corpus.manifest import Utterance
from units.corpus.sources import Refusal
from units.runtime.ahead import worked_ahead

AHEAD_SECONDS = 6 * 3600.0  # of audio that decoders have at work or ready: 1.4 GB
LARGE_FILE = 4_000_000  # bytes: smaller ones hold 20 minutes at most in any usual format; nobody asks how long they are


def decoded(rows: Iterable[Utterance], workers: int, grid: FrameGrid) -> Iterator[np.ndarray | Refusal]:
    """The wav of each row, at least a frame of the grid, in order, or why there is none; `workers` threads read ahead
    (decoders run beside Python)."""
    return worked_ahead(lambda row: _read(row, grid), rows, workers, weigh=_about_seconds, room=AHEAD_SECONDS)


def _read(utterance: Utterance, grid: FrameGrid) -> np.ndarray | Refusal:
    try:
        return load_wav(utterance.audio, utterance.start, utterance.duration, grid)
    except (AudioError, OSError) as error:
        return refused_row(utterance, str(error))


def _about_seconds(utterance: Utterance) -> float:
    """How long an utterance will be, as far as that matters to memory: 0 where its file is small, or says nothing."""
    import soundfile

    try:
        if utterance.duration is not None or utterance.audio.stat().st_size < LARGE_FILE:
            return utterance.duration or 0.0
        return soundfile.info(str(utterance.audio)).duration
    except (OSError, RuntimeError, ValueError, TypeError):  # load_wav will say why
        return 0.0


def refused_row(utterance: Utterance, reason: str) -> Refusal:
    return Refusal(utterance.id, str(utterance.audio), reason)
