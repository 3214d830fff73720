"""An answer's sound, while its text is written: states -> units -> chunks of at least omega units -> wav.

Whatever omega is, all units together are those of the whole answer, and the joined sound is that of all units, as long
as chunks are joined exactly. `islands` decodes each chunk alone, as the published code does, for comparison only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Literal, Protocol, TypeVar

import numpy as np
from torch import Tensor

from units.codebook import Codebook, Units
from units.vocoder.unit_vocoder import UnitVocoder
from variants.llama_omni.network.decoder import SpeechDecoder

T = TypeVar("T")
Join = Literal["exact", "islands"]
SILENCE = np.zeros(0, np.float32)


class SoundStream(Protocol):
    """Units to sound, some at a time."""

    def push(self, units: Units) -> np.ndarray: ...
    def finish(self) -> Iterator[np.ndarray]: ...


class IslandStream:
    """Each chunk is decoded alone."""

    def __init__(self, vocoder: UnitVocoder) -> None:
        self._vocoder = vocoder

    def push(self, units: Units) -> np.ndarray:
        return self._vocoder.decode(units) if units.ids else SILENCE

    def finish(self) -> Iterator[np.ndarray]:
        return iter(())


def sound_stream(vocoder: UnitVocoder, join: Join = "exact") -> SoundStream:
    """A stream of a vocoder."""
    return IslandStream(vocoder) if join == "islands" else vocoder.open_stream()


class AnswerSpeech:
    """The speech of one answer.

    units: all so far. seconds: spent in the decoder and in the vocoder.
    """

    def __init__(
        self, decoder: SpeechDecoder, codebook: Codebook, vocoder: UnitVocoder | None, omega: int, join: Join = "exact"
    ) -> None:
        """
        Args:
            vocoder: None gives units alone.
            omega: units that the vocoder gets at a time, at least.
        """
        self._stream, self._codebook, self._omega = decoder.stream(), codebook, omega
        self._sound = None if vocoder is None else sound_stream(vocoder, join)
        self._waiting: list[int] = []
        self.units: list[int] = []
        self.seconds = {"decoder": 0.0, "vocoder": 0.0}

    def push(self, state: Tensor, word: Tensor | None) -> np.ndarray:
        """Add the next token; returns the wav (T,) that can now be made; T may be 0.

        Args:
            state: (H,), which predicts the token. word: (H,), its embedding.
        """
        return self._said(self._timed("decoder", lambda: self._stream.push(state, word)))

    def finish(self) -> Iterator[np.ndarray]:
        """End the answer; gives the rest of the wav, in pieces as they are made."""
        units = self._stream.finish()
        while (unit := self._timed("decoder", lambda: next(units, None))) is not None:
            if len(wav := self._said([unit])):
                yield wav
        rest = self._spoken()
        if len(rest):
            yield rest
        if self._sound is None or not self.units:
            return
        pieces = self._sound.finish()
        while (piece := self._timed("vocoder", lambda: next(pieces, None))) is not None:
            yield piece

    def _said(self, new: list[int]) -> np.ndarray:
        """Add units; returns the wav that can now be made."""
        self.units += new
        self._waiting += new
        return self._spoken() if len(self._waiting) >= self._omega else SILENCE

    def _spoken(self) -> np.ndarray:
        """Give the vocoder all units that wait."""
        units, self._waiting = self._waiting, []
        if self._sound is None or not units:
            return SILENCE
        sound = self._sound
        return self._timed("vocoder", lambda: sound.push(Units(tuple(units), None, self._codebook)))

    def _timed(self, part: str, work: Callable[[], T]) -> T:
        """What a part gives; its time is added up."""
        began = time.perf_counter()
        found = work()
        self.seconds[part] += time.perf_counter() - began
        return found
