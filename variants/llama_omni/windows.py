"""A vocoder that needs a whole utterance, heard window by window.

The head "mel" makes every sample depend on all units, so it cannot be streamed exactly. Here it makes windows of units
with some before and some behind; each is moved by up to SLIDE samples to where it fits the sound before it best, and
cross-faded. Windows lie on a fixed grid, so the sound is the same however the units come.
"""

from __future__ import annotations

import numpy as np
import torch

from units.audio import HOP
from units.codebook import Units
from units.vocoder.unit_vocoder import UnitVocoder

WINDOW, BEFORE, BEHIND = 10, 10, 5  # units of a window, and of its context
SLIDE = HOP  # samples: 20 ms
FADE = HOP // 2  # samples of a cross-fade


class WindowStream:
    """One utterance of a vocoder whose head cannot be streamed; push and finish as units.vocoder's streams have."""

    def __init__(self, vocoder: UnitVocoder) -> None:
        self._vocoder = vocoder
        self._ids: list[int] = []
        self._done = 0  # units whose sound was returned
        self._tail = np.zeros(0, np.float32)  # sound that follows what was returned, as the last window has it

    def push(self, units: Units) -> np.ndarray:
        """Add units; returns the wav (T,) that can now be made; T may be 0."""
        self._ids += units.ids
        made = []
        while len(self._ids) >= self._done + WINDOW + BEHIND:
            made.append(self._window(self._done + WINDOW))
        return np.concatenate(made) if made else np.zeros(0, np.float32)

    def finish(self) -> np.ndarray:
        """End the utterance; returns the rest of the wav."""
        made = []
        while self._done < len(self._ids):
            made.append(self._window(min(len(self._ids), self._done + WINDOW)))
        return np.concatenate(made) if made else np.zeros(0, np.float32)

    @torch.inference_mode()
    def _window(self, end: int) -> np.ndarray:
        """The sound of the units from where the last window ended."""
        first, last = max(0, self._done - BEFORE), min(len(self._ids), end + BEHIND)
        part = self._ids[first:last]
        row = torch.tensor([part], device=self._vocoder.device)
        durations = self._vocoder.network.whole_frames(
            self._vocoder.network.log_durations(row, torch.ones_like(row, dtype=torch.bool))
        )[0].tolist()
        wav = self._vocoder.decode(Units(tuple(part), tuple(durations), self._vocoder.codebook))
        start = sum(durations[: self._done - first]) * HOP
        stop = sum(durations[: end - first]) * HOP
        moved = start + self._offset(wav, start)
        found = wav[moved:stop].copy()
        count = min(FADE, len(self._tail), len(found))
        weight = (np.arange(1, count + 1, dtype=np.float32) / (count + 1)) if count else np.zeros(0, np.float32)
        found[:count] = weight * found[:count] + (1 - weight) * self._tail[:count]
        self._tail, self._done = wav[stop : stop + FADE].copy(), end
        return found

    def _offset(self, wav: np.ndarray, start: int) -> int:
        """By how many samples the window is moved so that it continues the sound before it."""
        count = len(self._tail)
        low, high = max(0, start - SLIDE), min(len(wav) - count, start + SLIDE)
        if not count or high <= low:
            return 0
        views = np.lib.stride_tricks.sliding_window_view(wav[low : high + count], count)
        norms = np.sqrt((views**2).sum(1)) + 1e-6
        return int((views @ self._tail / norms).argmax()) + low - start
