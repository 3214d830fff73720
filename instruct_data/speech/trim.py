"""Synthesised speech made ready for a corpus: silence trimmed, loudness normalised."""

from __future__ import annotations

import numpy as np

from instruct_data.speech.tts_voice import VoiceError
from instruct_data.text.reasons import TextReason
from units.audio import SAMPLE_RATE

SILENT_PEAK = 0.02  # of full scale: peaks of speech are above 0.1; Flite's noise for a text without words is below 0.01
QUIET = 0.01  # of the peak: below it, a sample counts as silence
MARGIN = round(0.04 * SAMPLE_RATE)  # samples: 40 ms of silence are kept before and after the speech
PEAK = 0.7  # of full scale


def trim(wav: np.ndarray, text: str = "") -> np.ndarray:
    """Trim the silence before and after the speech to 40 ms, and scale the peak to 0.7.

    Args:
        wav: float32 (T,), 16 kHz.
        text: what the wav speaks, for the error.

    Raises:
        VoiceError: if the wav holds no speech.
    """
    peak = np.abs(wav).max()
    if peak < SILENT_PEAK:
        raise VoiceError(TextReason.SILENT, f"the engine gave silence for {text!r}: its peak is {peak:.4f}")
    loud = np.flatnonzero(np.abs(wav) > QUIET * peak)
    wav = wav[max(0, loud[0] - MARGIN) : loud[-1] + MARGIN]
    return wav * (PEAK / np.abs(wav).max())
