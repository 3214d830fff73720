"""Streaming: units arrive in pieces, and the wav is returned in pieces.

Each sample depends on the frames around it, as far as the network's receptive field reaches. A stream keeps that much
of the past and holds back that much of the newest frames, so the joined pieces equal the wav of the whole utterance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from units.audio import HOP
from units.vocoder.errors import VocoderError, VocoderReason
from units.vocoder.heads.frames import run_frames
from units.vocoder.heads.mel_blocks import MelBlocks
from units.vocoder.heads.mel_generator import MelNetwork
from units.vocoder.heads.unit_network import UnitNetwork

NOTHING = torch.zeros(0, dtype=torch.long)
FADE = HOP  # samples of the cross-fade at each join of a stream with too little lookahead


class UnitTimer:
    """Gives each unit of an utterance its duration, as soon as the units that decide it are there."""

    def __init__(self, network: UnitNetwork | MelNetwork) -> None:
        self._network = network
        self._units: list[int] = []  # units without durations yet, after enough earlier ones to predict the first
        self._timed = 0  # how many of self._units are such earlier ones

    def add(self, ids: Tensor, durations: Tensor | None, last: bool = False) -> tuple[Tensor, Tensor]:
        """Add units int64 (U,), with durations in frames, or None to predict them.

        Args:
            last: whether no more will come.

        Returns: the units that now have durations, and these, int64 (U,) each.
        """
        if durations is not None:
            return ids, durations
        self._units += ids.tolist()
        context = self._network.unit_context
        ready = len(self._units) - (0 if last else context.right)
        if ready <= self._timed:
            return NOTHING, NOTHING
        row = torch.tensor([self._units], device=next(self._network.parameters()).device)
        log_durations = self._network.log_durations(row, torch.ones_like(row, dtype=torch.bool))
        new = slice(self._timed, ready)
        timed = row[0, new].cpu(), self._network.whole_frames(log_durations)[0, new].cpu()
        dropped = max(0, ready - context.left)
        self._units, self._timed = self._units[dropped:], ready - dropped
        return timed


class UnitStream:
    """One utterance of a waveform head, synthesised piece by piece."""

    def __init__(self, network: UnitNetwork, speaker: int = 0, lookahead: int | None = None) -> None:
        """
        Args:
            network: the vocoder's network.
            speaker: row of the speaker table.
            lookahead: frames that must follow a frame before it is synthesised. None, or more than the network's right
                context, waits for the right context, which makes the stream exact.

        Raises: VocoderError if `lookahead` is negative.
        """
        context = network.context
        self._network, self._speaker = network, speaker
        self._left, self._right = context.left, context.right
        if lookahead is not None:
            if lookahead < 0:
                raise VocoderError(
                    VocoderReason.INVALID_SETTING, f"lookahead is {lookahead}; it is a number of frames, 0 or more"
                )
            self._right = min(lookahead, self._right)
        self._timer = UnitTimer(network)
        self._frames = torch.zeros(0, dtype=torch.long)  # the unit of each frame
        self._done = 0  # how many of self._frames have been returned as sound
        # an exact stream must not cross-fade: its guess of the next frame had one frame too little context
        self._fade = FADE if self._right < context.right else 0
        self._guess = np.zeros(0, np.float32)  # the samples after the last returned one, as first synthesised

    def push(self, ids: Tensor, durations: Tensor | None = None) -> np.ndarray:
        """Add units.

        Args:
            ids: int64 (U,).
            durations: int64 (U,), in frames; None to predict them.

        Returns: the wav (T,) that can now be synthesised; T may be 0.
        """
        self._add(*self._timer.add(ids, durations))
        return self._synthesise(len(self._frames) - self._right)

    def finish(self) -> Iterator[np.ndarray]:
        """End the utterance; gives the rest of the wav, in pieces (T,) as they are made: here in one."""
        self._add(*self._timer.add(NOTHING, None, last=True))
        yield self._synthesise(len(self._frames))

    def _add(self, ids: Tensor, durations: Tensor) -> None:
        self._frames = torch.cat([self._frames, ids.repeat_interleave(durations)])

    def _synthesise(self, ready: int) -> np.ndarray:
        """The wav of the frames up to `ready` that has not been returned yet."""
        if ready <= self._done:
            return np.zeros(0, np.float32)
        first = max(0, self._done - self._left)
        window = self._frames[first:]
        sound = self._network.synthesise([(window, torch.ones_like(window))], [self._speaker])[0].cpu().numpy()
        wav = self._faded(sound[(self._done - first) * HOP : (ready - first) * HOP].copy())
        self._guess = sound[(ready - first) * HOP :][: self._fade].copy()
        dropped = max(0, ready - self._left)
        self._frames, self._done = self._frames[dropped:], ready - dropped
        return wav

    def _faded(self, wav: np.ndarray) -> np.ndarray:
        """Cross-fade from the earlier guess of the first samples to the wav."""
        count = min(len(wav), len(self._guess))
        weight = np.arange(1, count + 1, dtype=np.float32) / (count + 1)
        wav[:count] = weight * wav[:count] + (1 - weight) * self._guess[:count]
        return wav


class MelStream:
    """One utterance of the head "mel", synthesised block by block."""

    def __init__(self, network: MelNetwork) -> None:
        self._timer, self._blocks = UnitTimer(network), MelBlocks(network.generator)

    def push(self, ids: Tensor, durations: Tensor | None = None) -> np.ndarray:
        """As UnitStream.push."""
        self._blocks.add(*run_frames(*self._timer.add(ids, durations)))
        return torch.cat([torch.zeros(0), *self._blocks.sounds()]).numpy()

    def finish(self) -> Iterator[np.ndarray]:
        """As UnitStream.finish; a piece for each block."""
        self._blocks.add(*run_frames(*self._timer.add(NOTHING, None, last=True)))
        return (sound.numpy() for sound in self._blocks.sounds(last=True))


class WholeStream:
    """The same interface for a head that needs the last unit before it can make the first sample."""

    def __init__(self, decode: Callable[[Tensor, Tensor | None], np.ndarray]) -> None:
        self._decode = decode
        self._ids: list[Tensor] = []
        self._durations: list[Tensor | None] = []

    def push(self, ids: Tensor, durations: Tensor | None = None) -> np.ndarray:
        """Add units; the returned wav is empty."""
        self._ids.append(ids)
        self._durations.append(durations)
        return np.zeros(0, np.float32)

    def finish(self) -> Iterator[np.ndarray]:
        """End the utterance; gives the whole wav."""
        known = [one for one in self._durations if one is not None]
        yield self._decode(torch.cat(self._ids), torch.cat(known) if len(known) == len(self._ids) else None)
