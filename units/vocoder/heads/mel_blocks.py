"""The head "mel" block by block, so that sound begins while units still arrive.

An utterance is cut into blocks of fixed length. The network goes on from block to block, and each of its layers keeps
the frames that it reads again. Griffin-Lim then runs on a block and AHEAD mel frames behind it: the sound before the
block stays as it is, and the phases start from the sound that the block before expected. So each block continues the
one before, and an utterance that arrives in pieces gives the very samples that it gives as a whole.

N unit frames (50 a second), F mel frames (100 a second), M mels, S spectrum bins, T samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from units.vocoder.mel import MEL_HOP, MelSpectrogram

PAST = 8  # mel frames before a block whose sound is kept fixed; more than a window reaches back
AHEAD = 8  # mel frames behind a block that are inverted with it
FADE = 2 * MEL_HOP  # samples over which a block takes over from what the block before expected


class LogMels(Protocol):
    """Log-mels (F, M) of one utterance, from its frames as they come: units int64 (N,) and run features (N, 2)."""

    def push(self, ids: Tensor, runs: Tensor) -> Tensor: ...
    def finish(self) -> Tensor: ...


class BlockNetwork(Protocol):
    """What predicts log-mels.

    block: unit frames of a block. reach: unit frames to each side that a frame's log-mels depend on.
    """

    block: int
    reach: int
    spectrogram: MelSpectrogram

    def open_stream(self) -> LogMels: ...


class MelBlocks:
    """One utterance of the head "mel": frames in, sound out, a block at a time."""

    def __init__(self, network: BlockNetwork) -> None:
        """network: predicts the log-mels."""
        self._log_mels = network.open_stream()
        self._inverse = BlockInverse(network.spectrogram, 2 * network.block)
        self._ids = torch.zeros(0, dtype=torch.long)  # (N,) of the frames that wait
        self._runs = torch.zeros(0, 2)
        self._block = network.block
        self._next = network.block + AHEAD // 2 + network.reach  # frames that the next block of sound needs

    def add(self, ids: Tensor, runs: Tensor) -> None:
        """Add frames: their units int64 (N,) and run features (N, 2)."""
        self._ids, self._runs = torch.cat([self._ids, ids]), torch.cat([self._runs, runs])

    def sounds(self, last: bool = False) -> Iterator[Tensor]:
        """The sound (T,) of each block whose frames are there, as it is made.

        The network always gets the same frames at once, however they were added, as its products round otherwise.

        Args:
            last: no more frames will come; the rest of the utterance's sound follows.
        """
        while len(self._ids) >= self._next or (last and len(self._ids)):
            ids, runs = self._ids[: self._next], self._runs[: self._next]
            self._ids, self._runs, self._next = self._ids[self._next :], self._runs[self._next :], self._block
            yield from self._inverse.push(self._log_mels.push(ids, runs))
        if last:
            yield from self._inverse.push(self._log_mels.finish())
            yield from self._inverse.finish()


class BlockInverse:
    """Log-mels to sound, a block at a time."""

    def __init__(self, spectrogram: MelSpectrogram, block: int) -> None:
        """
        Args:
            spectrogram: the transform to invert.
            block: mel frames of a block.
        """
        self._spectrogram, self._block = spectrogram, block
        device = spectrogram.window.device
        self._magnitudes = torch.zeros(0, spectrogram.phases.shape[1], device=device)  # PAST frames, and what waits
        self._past = torch.zeros(0, device=device)  # the last samples that were returned
        self._expected = torch.zeros(0, device=device)  # the samples after them, as the last block has them
        self._done = 0  # mel frames that were returned

    def push(self, log_mels: Tensor) -> Iterator[Tensor]:
        """Add log-mels (F, M). Gives the sound (T,) of each block that they complete."""
        self._magnitudes = torch.cat([self._magnitudes, self._spectrogram.block_magnitudes(log_mels)])
        return self._blocks(self._block + AHEAD)

    def finish(self) -> Iterator[Tensor]:
        """End the utterance; gives the sound (T,) of the blocks that are left."""
        return self._blocks(1)

    def _blocks(self, least: int) -> Iterator[Tensor]:
        while len(self._magnitudes) - len(self._past) // MEL_HOP >= least:
            yield self._sound()

    def _sound(self) -> Tensor:
        """The sound of the next block."""
        kept = len(self._past) // MEL_HOP
        target = self._magnitudes[: kept + self._block + AHEAD]
        before = torch.cat([self._past, self._expected])
        wav = self._spectrogram.continued(target, before, len(self._past), self._done - kept)
        new = min(self._block, len(target) - kept) * MEL_HOP
        sound = _faded(self._expected, wav[len(self._past) :])
        self._expected = sound[new:]
        self._done += new // MEL_HOP
        returned = torch.cat([self._past, sound[:new]])
        dropped = max(0, len(returned) // MEL_HOP - PAST)
        self._past, self._magnitudes = returned[dropped * MEL_HOP :], self._magnitudes[dropped:]
        return sound[:new].clamp(-1, 1).cpu()


def _faded(expected: Tensor, wav: Tensor) -> Tensor:
    """Cross-fade from the expected samples (T,) to the wav (T,)."""
    count = min(FADE, len(expected), len(wav))
    weight = torch.arange(1, count + 1, device=wav.device) / (count + 1)
    return torch.cat([weight * wav[:count] + (1 - weight) * expected[:count], wav[count:]])
