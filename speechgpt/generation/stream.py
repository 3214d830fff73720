"""A reply while its tokens are drawn: text as it is written, and sound as soon as the vocoder can make it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Protocol

import numpy as np

from speechgpt.answers import Piece
from speechgpt.dialogue import Dialogue
from units.codebook import Codebook, Units
from units.notation import EOSP, SOSP

# Units that the vocoder gets at a time: a tenth of a second of speech, or somewhat more, until it has made sound; then
# more, which costs less.
FIRST_UNITS, MORE_UNITS = 5, 20


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

    def pieces(self, vocoder: Speaks | None, speaker: int = 0) -> Iterator[Piece]:
        """What is drawn, as it comes: texts that have grown, and sound as soon as the vocoder can make it.

        The text of an interleaved reply goes on behind its first sound.

        Args:
            vocoder: None if the sound is made later.
        """
        if vocoder is None:
            yield from self._pieces(None)
            return
        with closing(_Speech(vocoder, speaker)) as speech:
            yield from self._pieces(speech)

    def _pieces(self, speech: _Speech | None) -> Iterator[Piece]:
        vocab, units = self._dialogue.vocab, list[int]()
        for token in self._tokens:
            if vocab.is_unit(token):
                units += vocab.decode([token])
            elif token not in (vocab.special_id(SOSP), vocab.special_id(EOSP)):
                reply = self._dialogue.parse_begun(self.ids)
                new = self.added(reply.transcript, reply.text)
                if new.transcript or new.text:
                    yield new
            if speech is not None and (len(units) >= speech.at_once or token == vocab.special_id(EOSP)):
                yield from speech.push(units)
                units = []
        if speech is not None:
            yield from speech.push(units)
            yield from speech.finish()

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


class Sounds(Protocol):
    """One utterance of a vocoder, made while its units come."""

    def push(self, units: Units) -> np.ndarray: ...
    def finish(self) -> Iterator[np.ndarray]: ...


class Speaks(Protocol):
    """What makes sound of units: UnitVocoder, or SoundProcess."""

    @property
    def codebook(self) -> Codebook: ...
    def open_stream(self, *, speaker: int = 0) -> Sounds: ...


class _Speech:
    """The sound of one reply. at_once: units that it is best given at a time."""

    def __init__(self, vocoder: Speaks, speaker: int) -> None:
        self._stream, self._codebook, self._begun = vocoder.open_stream(speaker=speaker), vocoder.codebook, False
        self.at_once = FIRST_UNITS

    def push(self, units: Sequence[int]) -> Iterator[Piece]:
        if units:
            self._begun = True
            wav = self._stream.push(Units(tuple(units), None, self._codebook))
            if len(wav):
                self.at_once = MORE_UNITS
                yield Piece(wav=wav)

    def finish(self) -> Iterator[Piece]:
        """The rest; nothing where the reply was cut off before its speech."""
        if self._begun:
            yield from (Piece(wav=wav) for wav in self._stream.finish())

    def close(self) -> None:
        """Let go of a stream that is kept in another process."""
        getattr(self._stream, "close", lambda: None)()


def _gained(before: str, now: str) -> str:
    return now[len(before) :] if now.startswith(before) else ""
