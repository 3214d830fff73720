"""Where speech begins and ends in a stream of samples, by its energy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from speechgpt.serve.sounds import OPENAI_RATE

FRAME_MS = 20
FRAME = OPENAI_RATE * FRAME_MS // 1000  # samples
LOUD_FRAMES = 3  # in a row begin speech: a click is shorter
LOUDER = 3.0  # times the noise, in amplitude (10 dB), is speech
QUIET = 0.02  # root mean square; `threshold` times this is the least level of speech


@dataclass(frozen=True)
class Turns:
    """Fields of OpenAI's `turn_detection`."""

    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 500
    create_response: bool = True
    interrupt_response: bool = True


@dataclass(frozen=True)
class Boundary:
    """Begin or end of speech, in milliseconds since the first sample."""

    kind: Literal["begin", "end"]
    at_ms: int


class VoiceActivity:
    """Finds speech in samples that come in pieces of any length."""

    def __init__(self, turns: Turns) -> None:
        self.turns, self.speaking = turns, False
        self._rest = np.zeros(0, np.float32)
        self._frames = self._loud = self._silent = 0
        self._noise: float | None = None

    def push(self, wav: np.ndarray) -> Iterator[Boundary]:
        """Boundaries that samples (T,) at 24 kHz bring, in order."""
        wav = np.concatenate([self._rest, wav])
        count = len(wav) // FRAME
        self._rest = wav[count * FRAME :]
        for level in np.sqrt(np.square(wav[: count * FRAME].reshape(count, FRAME)).mean(1)).tolist():
            self._frames += 1
            yield from self._frame(level)

    def _frame(self, level: float) -> Iterator[Boundary]:
        noise = level if self._noise is None else self._noise
        is_loud = level > max(self.turns.threshold * QUIET, LOUDER * noise if self._noise is not None else 0.0)
        if not is_loud and not self.speaking:  # the noise falls at once, and rises slowly
            self._noise = level if level < noise else noise + 0.05 * (level - noise)
        self._loud = self._loud + 1 if is_loud else 0
        if self.speaking:
            self._silent = 0 if is_loud else self._silent + 1
            if self._silent * FRAME_MS >= self.turns.silence_duration_ms:
                self.speaking, self._silent = False, 0
                yield Boundary("end", self._frames * FRAME_MS)
        elif self._loud >= LOUD_FRAMES:
            self.speaking, self._silent = True, 0
            begin = (self._frames - LOUD_FRAMES) * FRAME_MS - self.turns.prefix_padding_ms
            yield Boundary("begin", max(0, begin))
