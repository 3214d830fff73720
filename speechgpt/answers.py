"""What is asked of a model that talks, and what it gives: the only thing that the CLI, the server and eval know of a system.

SpeechGPT (speechgpt/inference.py) is one such model; other packages bring theirs (speechgpt/open_model.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np

from speechgpt.candidates import Take
from speechgpt.dialogue import Message

if TYPE_CHECKING:
    from speechgpt.generate import Sampling

Sound = str | Path | np.ndarray  # an audio file, or a wav (T,)
Ability = Literal["answer", "stream", "transcribe", "say", "chat"]


class NotSupported(ValueError):
    """A model is asked for what it cannot do; the message names the model, the ability, and what it can do."""


@dataclass(frozen=True)
class Answer:
    """A reply and its sound. What was not asked for is None. wav: float32 (T,), 16 kHz.

    take: how its speech was chosen, and whether the model understands it; None if it did not listen.
    finished: whether the model came to an end, and was not cut off by `max_new_tokens` or its context.
    turn: what was asked and replied, to be given as history with the next question.
    """

    transcript: str | None
    text: str | None
    units: tuple[int, ...] | None
    wav: np.ndarray | None
    take: Take | None = None
    finished: bool = True
    turn: tuple[Message, ...] = ()


@dataclass(frozen=True)
class Piece:
    """What an answer has gained since the piece before: text, or sound (T,); with the last one the whole answer."""

    transcript: str = ""
    text: str = ""
    wav: np.ndarray | None = None
    answer: Answer | None = None


@runtime_checkable
class SpeechModel(Protocol):
    """A model that takes speech or text and gives text, speech, or both.

    name: of the model and its weights; results are kept under it. capabilities: the methods that it has learned; every
    other method raises NotSupported. sample_rate: of the wavs that it takes and gives, in Hz.
    """

    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> frozenset[Ability]: ...

    @property
    def sample_rate(self) -> int: ...

    def answer(self, question: Sound, sampling: Sampling = ..., history: Sequence[Message] = ()) -> Answer:
        """The reply to a spoken question. history: the turns before, `answer.turn` of each."""

    def answer_batch(self, questions: Sequence[Sound], sampling: Sampling = ...) -> list[Answer]:
        """As answer, for several questions at once."""

    def stream(self, question: Sound, sampling: Sampling = ..., history: Sequence[Message] = ()) -> Iterator[Piece]:
        """As answer, in pieces; the joined pieces are what answer gives."""

    def transcribe(self, sound: Sound, sampling: Sampling = ...) -> str:
        """What is said in a sound."""

    def transcribe_batch(self, sounds: Sequence[Sound], sampling: Sampling = ...) -> list[str]:
        """As transcribe, for several sounds at once."""

    def say(self, text: str, sampling: Sampling = ...) -> Answer:
        """A text, spoken."""

    def say_batch(self, texts: Sequence[str], sampling: Sampling = ...) -> list[Answer]:
        """As say, for several texts at once."""

    def chat(self, question: str, sampling: Sampling = ..., history: Sequence[Message] = ()) -> str:
        """A text answer to a text question."""

    def chat_batch(self, questions: Sequence[str], sampling: Sampling = ...) -> list[str]:
        """As chat, for several questions at once."""
