"""A reply while its tokens come: its texts as they are written, its sound as soon as the voice is sure of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from speechgpt.answers import Piece
from speechgpt.dialogue import Dialogue
from units.codebook import Units
from units.notation import SOSP
from units.vocoder.unit_vocoder import UnitVocoder

SPOKEN_AT_ONCE = 25  # units that the voice is given at a time: half a second, or somewhat more


class ReplyStream:
    """One reply to a spoken question. ids: its tokens so far."""

    def __init__(self, dialogue: Dialogue, steps: Iterator[list[int | None]]) -> None:
        """
        Args:
            steps: the next token, again and again (speechgpt.generate.draws of a single prompt).
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
        """Transcript and answer as they grow, until the reply begins to speak."""
        for token in self._tokens:
            if token == self._dialogue.vocab.marker(SOSP):
                return
            reply = self._dialogue.parse_reply(self.ids, chained=True)
            new = self.added(reply.transcript, reply.text)
            if new.transcript or new.text:
                yield new

    def sound(self, voice: UnitVocoder) -> Iterator[np.ndarray]:
        """Wavs (T,) of the units behind the texts."""
        units = (unit for token in self._tokens for unit in self._dialogue.vocab.decode([token]))
        pieces = iter(lambda: tuple(itertools.islice(units, SPOKEN_AT_ONCE)), ())
        for first in pieces:  # there is none where the reply was cut off
            yield from voice.stream(Units(ids, None, voice.codebook) for ids in itertools.chain([first], pieces))

    def finish(self) -> list[int]:
        """All tokens of the reply, when the last has come."""
        for _ in self._tokens:
            pass
        return self.ids

    def added(self, transcript: str | None, text: str | None, last: bool = False) -> Piece:
        """What the texts have gained; a letter whose last bytes are still to come waits, unless nothing comes any more."""
        transcript, text = (said or "" if last else (said or "").rstrip("\ufffd") for said in (transcript, text))
        new = Piece(_behind(self._transcript, transcript), _behind(self._text, text))
        self._transcript, self._text = self._transcript + new.transcript, self._text + new.text
        return new


def _behind(shown: str, now: str) -> str:
    return now[len(shown) :] if now.startswith(shown) else ""
