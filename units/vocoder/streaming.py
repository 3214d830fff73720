"""Units in, sound out, while the units are still coming.

Each moment of sound depends on the frames around it, as far as the network's receptive field reaches. A stream keeps
that much of the past, holds back that much of the newest, and so says exactly what the whole would have said.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from units.audio import HOP
from units.vocoder.heads.unit_network import UnitNetwork

FADE = HOP  # samples over which a stream with too little lookahead slides from its first guess to its better one


class UnitStream:
    """One utterance of a waveform network, spoken piece by piece. Joined, the pieces are what the whole gives."""

    def __init__(self, network: UnitNetwork, speaker: int = 0, lookahead: int | None = None) -> None:
        """
        Args:
            speaker: row of the speaker table.
            lookahead: frames to wait for before a frame is said; None, or more than the network's right context, is
                as many as it takes to be exact.
        """
        context = network.context
        self._network, self._speaker = network, speaker
        self._left, self._right = context.left, context.right
        if lookahead is not None:
            if lookahead < 0:
                raise ValueError(f"lookahead is {lookahead}; it is a number of frames, 0 or more")
            self._right = min(lookahead, self._right)
        self._units: list[int] = []  # not yet timed, after enough already timed ones to predict the first of them
        self._timed = 0  # of self._units
        self._frames = torch.zeros(0, dtype=torch.long)  # laid out; the first `_said` of them have been said
        self._said = 0
        # an exact stream has no need to slide, and must not: its next frame has been heard one frame too early
        self._fade = FADE if self._right < context.right else 0
        self._guess = np.zeros(0, np.float32)  # of the sound after the last that was said

    def push(self, ids: Tensor, durations: Tensor | None = None) -> np.ndarray:
        """Take more units, int64 (U,) with durations or to be predicted -> the wav (T,) they make certain, T maybe 0."""
        self._take(ids, durations, last=False)
        return self._say(len(self._frames) - self._right)

    def finish(self) -> np.ndarray:
        """No more units: the rest of the wav (T,)."""
        self._take(torch.zeros(0, dtype=torch.long), None, last=True)
        return self._say(len(self._frames))

    def _take(self, ids: Tensor, durations: Tensor | None, last: bool) -> None:
        if durations is not None:
            self._frames = torch.cat([self._frames, ids.repeat_interleave(durations)])
            return
        self._units += ids.tolist()
        context = self._network.unit_context
        ready = len(self._units) - (0 if last else context.right)
        if ready <= self._timed:
            return
        row = torch.tensor([self._units], device=self._network.dict.weight.device)
        found = self._network.whole_frames(self._network.log_durations(row, torch.ones_like(row, dtype=torch.bool)))[0]
        new = slice(self._timed, ready)
        self._frames = torch.cat([self._frames, row[0, new].repeat_interleave(found[new]).cpu()])
        forgotten = max(0, ready - context.left)
        self._units, self._timed = self._units[forgotten:], ready - forgotten

    def _say(self, ready: int) -> np.ndarray:
        """Sound of the frames up to `ready`."""
        if ready <= self._said:
            return np.zeros(0, np.float32)
        first = max(0, self._said - self._left)
        window = self._frames[first:]
        wav = self._network.synthesise([(window, torch.ones_like(window))], [self._speaker])[0].cpu().numpy()
        said = wav[(self._said - first) * HOP : (ready - first) * HOP].copy()
        slide = min(len(said), len(self._guess))
        better = np.arange(1, slide + 1, dtype=np.float32) / (slide + 1)
        said[:slide] = better * said[:slide] + (1 - better) * self._guess[:slide]
        self._guess = wav[(ready - first) * HOP :][: self._fade].copy()
        forgotten = max(0, ready - self._left)
        self._frames, self._said = self._frames[forgotten:], ready - forgotten
        return said


class WholeStream:
    """The same for a head that cannot say a sample before it has the last unit: everything comes at the end."""

    def __init__(self, decode: Callable[[Tensor, Tensor | None], np.ndarray]) -> None:
        self._decode = decode
        self._ids: list[Tensor] = []
        self._durations: list[Tensor | None] = []

    def push(self, ids: Tensor, durations: Tensor | None = None) -> np.ndarray:
        """Take more units; nothing can be said yet."""
        self._ids.append(ids)
        self._durations.append(durations)
        return np.zeros(0, np.float32)

    def finish(self) -> np.ndarray:
        """No more units: the whole wav."""
        known = [one for one in self._durations if one is not None]
        return self._decode(torch.cat(self._ids), torch.cat(known) if len(known) == len(self._ids) else None)
