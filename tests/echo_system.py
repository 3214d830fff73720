"""A system that says what it was asked: its answers have known texts and sounds, so that tests can look for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from speechgpt.answers import CAPABILITIES, Answer, Piece, Sound
from speechgpt.dialogue import Message
from speechgpt.sampling import Sampling
from units.audio import SAMPLE_RATE, AudioError, AudioReason, loudness

ANSWERED = 0.9  # seconds of a spoken answer


def tone(seconds: float) -> np.ndarray:
    """A wav (T,)."""
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE)).astype(np.float32)


class Echo:
    """A speechgpt.answers.SpeechModel without a neural network, that speaks in two voices."""

    name, capabilities, sample_rate = "echo 1", CAPABILITIES, SAMPLE_RATE
    voices = ("high", "low")

    def __init__(self, voice: str = "high") -> None:
        self.voice = voice

    def share(self, rows: int) -> None:
        """Any number of threads may ask."""

    def in_voice(self, voice: str) -> Echo:
        return Echo(voice)

    def heard(self, sound: Sound) -> Message:
        return Message("human", ("a sound",))

    def chat(self, question: str, sampling: Sampling = Sampling(), history: Sequence[Message] = ()) -> str:
        return f"you said {question}" + (f" after {len(history) // 2}" if history else "")

    def say(self, text: str, sampling: Sampling = Sampling()) -> Answer:
        return Answer(None, text, (1, 2), tone(ANSWERED if self.voice == "high" else 2 * ANSWERED))

    def transcribe(self, sound: Sound, sampling: Sampling = Sampling()) -> str:
        return f"{len(sound) / SAMPLE_RATE:.1f} seconds"

    def stream(
        self, question: Sound, sampling: Sampling = Sampling(), history: Sequence[Message] = ()
    ) -> Iterator[Piece]:
        if loudness(question) < 1e-4:
            raise AudioError(AudioReason.SILENT, "the wav is silent; there is nothing to answer")
        heard = self.transcribe(question)
        yield Piece(transcript=heard)
        text = self.chat(heard, sampling, history)
        for word in text.split():
            yield Piece(text=word + " ")
        said = self.say(text)
        for part in np.array_split(said.wav, 3):
            yield Piece(wav=part)
        turn = (Message("human", (heard,)), Message("assistant", (text,)))
        yield Piece(answer=Answer(heard, text, (1, 2), said.wav, turn=turn))

    def answer(self, question: Sound, sampling: Sampling = Sampling(), history: Sequence[Message] = ()) -> Answer:
        return list(self.stream(question, sampling, history))[-1].answer
