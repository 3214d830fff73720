"""Decoding audio ahead of the encoder: the wav of each utterance, in order, or its refusal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from units.audio import SILENT, AudioError, AudioReason, FrameGrid, load_wav, loudness
from units.corpus.manifest import Utterance
from units.runtime.ahead import worked_ahead
from units.runtime.refusals import Refusal, refusal_of

AHEAD_SECONDS = 6 * 3600.0  # of audio that threads decode or hold decoded: 1.4 GB
LARGE_FILE = 4_000_000  # bytes: a smaller file holds at most 20 minutes in any usual format, so its length is not read


def decoded(
    rows: Iterable[Utterance], workers: int, grid: FrameGrid, keep_silent: bool = True
) -> Iterator[np.ndarray | Refusal]:
    """The wav of each utterance in order, of at least one frame of the grid, or its refusal.

    Args:
        workers: threads that read ahead (decoders run outside Python's lock); 0 reads when the next wav is needed.
        keep_silent: give silent wavs; else they are refused.
    """
    return worked_ahead(
        lambda row: _read(row, grid, keep_silent), rows, workers, weigh=_about_seconds, room=AHEAD_SECONDS
    )


def _read(utterance: Utterance, grid: FrameGrid, keep_silent: bool) -> np.ndarray | Refusal:
    try:
        wav = load_wav(utterance.audio, utterance.start, utterance.duration, grid)
        if not keep_silent and (peak := loudness(wav)) < SILENT:
            raise AudioError(AudioReason.SILENT, f"{utterance.audio} is silent: its peak is {peak:.1e}")
        return wav
    except AudioError as error:
        return refusal_of(utterance.id, error, audio=utterance.audio)
    except OSError as error:
        return refusal_of(utterance.id, AudioReason.UNREADABLE, str(error), audio=utterance.audio)


def _about_seconds(utterance: Utterance) -> float:
    """The length of an utterance as far as it matters to memory: 0 if its file is small or does not state it."""
    import soundfile

    try:
        if utterance.duration is not None or utterance.audio.stat().st_size < LARGE_FILE:
            return utterance.duration or 0.0
        return soundfile.info(str(utterance.audio)).duration
    except (OSError, RuntimeError, ValueError, TypeError):  # load_wav reports the error
        return 0.0
