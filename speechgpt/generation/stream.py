"""A reply while its tokens are drawn: text as it is written, and sound as soon as the vocoder can make it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from speechgpt.answers import Piece
from speechgpt.dialogue import Dialogue
from units.codebook import Units
from units.notation import SOSP
from units.vocoder.unit_vocoder import UnitVocoder

UNITS_AT_ONCE = 25  # units that the vocoder gets at a time: half a second of speech, or somewhat more


class ReplyStream:
    """One reply to a spoken question. ids: its tokens so far."""

    def __init__(self, dialogue: Dialogue, steps: Iterator[list[int | None]]) -> None:
        """
        Args:
            steps: the next token, step by step (speechgpt.generation.generate.draws of a single prompt).
        """
        self.ids: list[int] = []
        self._dialogue, self._transcript, self._text = dialogue, "", ""
        self._tokens = self._kept(steps)

    def _kept(self, steps: Iterator[list[int | None]]) -> Iterator[int]:
        for (token,) in steps:
            if token is not None:
                self.ids.append(token)
                yield token

    def texts(self) -> Iterator[Piece]:
        """Transcript and answer as they grow, up to the start of the spoken reply."""
        for token in self._tokens:
            if token == self._dialogue.vocab.special_id(SOSP):
                return
            reply = self._dialogue.parse_begun(self.ids)
            new = self.added(reply.transcript, reply.text)
            if new.transcript or new.text:
                yield new

    def sound(self, vocoder: UnitVocoder, speaker: int = 0) -> Iterator[np.ndarray]:
        """Wavs (T,) of the units that follow the texts; none where the reply was cut off before."""
        units = (unit for token in self._tokens for unit in self._dialogue.vocab.decode([token]))
        pieces = iter(lambda: tuple(itertools.islice(units, UNITS_AT_ONCE)), ())
        for first in pieces:
            spoken = (Units(ids, None, vocoder.codebook) for ids in itertools.chain([first], pieces))
            yield from vocoder.stream(spoken, speaker=speaker)

    def finish(self) -> list[int]:
        """Draw what is left, and return all tokens of the reply."""
        for _ in self._tokens:
            pass
        return self.ids

    def added(self, transcript: str | None, text: str | None, last: bool = False) -> Piece:
        """What the texts have gained since the last call.

        A letter whose last bytes are still to come is held back, unless this is the last call.
        """
        transcript, text = (part or "" if last else (part or "").rstrip("\ufffd") for part in (transcript, text))
        new = Piece(_gained(self._transcript, transcript), _gained(self._text, text))
        self._transcript, self._text = self._transcript + new.transcript, self._text + new.text
        return new


def _gained(before: str, now: str) -> str:
    return now[len(before) :] if now.startswith(before) else ""
