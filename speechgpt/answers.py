"""What a model that listens and speaks can be asked for, and what it returns: the protocol SpeechModel.

The command line, the server and eval use this protocol and nothing else of a model. SpeechGPT (speechgpt/inference.py)
is one implementation. Other packages bring their own; speechgpt/open_model.py finds them. A new system implements
every method, lists in `capabilities` those that work, and raises NotSupported in the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np

from speechgpt.dialogue import Message
from speechgpt.sampling import Sampling

Sound = str | Path | np.ndarray  # an audio file, or a wav: float32 (T,) at the model's sample rate
Capability = Literal["answer", "stream", "transcribe", "say", "chat"]
CAPABILITIES: frozenset[Capability] = frozenset(get_args(Capability))


class NotSupported(ValueError):
    """The model lacks a capability. The message names the model, the reason, and what it does support."""

    def __init__(self, model: SpeechModel, capability: Capability, reason: str = "") -> None:
        """
        Args:
            model: the one that was asked.
            capability: what it was asked for.
            reason: why it lacks that, if there is more to say.
        """
        able = ", ".join(sorted(model.capabilities)) or "nothing of this protocol"
        super().__init__(
            f"the model {model.name} does not support {capability!r}{reason and f': {reason}'}. It supports: {able}"
        )
        self.capability = capability


@dataclass(frozen=True)
class Candidate:
    """One way in which the model spoke a text."""

    units: tuple[int, ...]
    """What it spoke."""
    understood: bool | None
    """Whether the model would transcribe them as that text and nothing else; None if they exceed its context."""
    number: int = 0
    """0 for the first candidate."""


@dataclass(frozen=True)
class Answer:
    """A reply as text and sound. A part that was not asked for, or that the model did not give, is None."""

    transcript: str | None
    """What the model understood of a spoken question."""
    text: str | None
    """The answer, or the text that was read aloud."""
    units: tuple[int, ...] | None
    """Of the spoken answer, for systems that speak units."""
    wav: np.ndarray | None
    """The spoken answer: float32 (T,) at the model's sample rate."""
    candidate: Candidate | None = None
    """The one that self-verification chose; None without self-verification."""
    finished: bool = True
    """False if the reply was cut off by `max_new_tokens` or by the end of the context."""
    turn: tuple[Message, ...] = ()
    """Question and reply, to be passed as `history` with the next question."""


@dataclass(frozen=True)
class Piece:
    """What a streamed answer has gained since the piece before."""

    transcript: str = ""
    text: str = ""
    wav: np.ndarray | None = None
    """float32 (T,) at the model's sample rate."""
    answer: Answer | None = None
    """The whole answer, in the last piece alone."""


@dataclass(frozen=True)
class Likelihood:
    """How likely a model finds a sound."""

    log_probability: float
    """Sum of log p over its scored tokens, in nats."""
    tokens: int
    """How many were scored."""

    @property
    def mean(self) -> float:
        """Log-probability per token; 0 where none was scored."""
        return self.log_probability / self.tokens if self.tokens else 0.0


@runtime_checkable
class ScoresSpeech(Protocol):
    """A model that can say how likely a sound is: a language model over units, SpeechGPT or any other."""

    def likelihoods(self, sounds: Sequence[Sound]) -> list[Likelihood]:
        """The log-likelihood of each sound, on its own.

        Args:
            sounds: audio files or wavs (T,).

        Raises:
            ValueError: one is no audio, silent, or longer than the context.
        """


@runtime_checkable
class ScoresText(Protocol):
    """A model that can say how likely a text is."""

    def text_likelihoods(self, texts: Sequence[str], contexts: Sequence[str]) -> list[Likelihood]:
        """The log-likelihood of each text behind its context ("" for none), on its own.

        Raises:
            ValueError: a text is longer than the context window.
        """


@runtime_checkable
class FollowsInstructions(Protocol):
    """A model that does with a recording what a written instruction asks for: translate it, name the emotion, .."""

    def respond_batch(
        self, sounds: Sequence[Sound], instructions: Sequence[str], sampling: Sampling = ...
    ) -> list[str]:
        """The response to each recording by its instruction, in text.

        Args:
            sounds: audio files or wavs (T,).
            instructions: as many.

        Raises:
            ValueError: one is no audio, silent, or longer than the context.
        """


@runtime_checkable
class SpeechModel(Protocol):
    """A model that takes speech or text and returns text, speech, or both.

    Every method that is missing from `capabilities` raises NotSupported. Bad input (not audio, silent, longer than the
    context) raises ValueError, a missing file FileNotFoundError.

    A model may also have `likelihoods`, `text_likelihoods` and `respond_batch` (see ScoresSpeech, ScoresText and
    FollowsInstructions), which evaluation calls, and these methods, which the server calls:

    - `preload()` loads what would otherwise be loaded at first use.
    - `share(rows)` makes the model safe to call from several threads, whose work runs as one batch of up to `rows`
      replies; each gets what it would get alone. A model without it answers one request at a time.
    - `heard(sound)` gives the message of a spoken question, for the `history` of a later one.
    - `voices` names the voices that it can speak in, where there are several, and `in_voice(name)` is the same model
      with one of them.
    """

    @property
    def name(self) -> str:
        """Names the model and its weights: it changes when they change. Evaluation keeps results under it."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The methods that work. `answer_batch`, `say_batch`, ... go with `answer`, `say`, ..."""

    @property
    def sample_rate(self) -> int:
        """Of the wavs that the model takes and returns, in Hz. The commands of this package read and write 16,000."""

    def answer(self, question: Sound, sampling: Sampling = ..., history: Sequence[Message] = ()) -> Answer:
        """Reply to a spoken question.

        Args:
            question: an audio file or a wav (T,).
            history: earlier turns, oldest first: `answer.turn` of each.
        """

    def answer_batch(self, questions: Sequence[Sound], sampling: Sampling = ...) -> list[Answer]:
        """Reply to several spoken questions at once."""

    def stream(self, question: Sound, sampling: Sampling = ..., history: Sequence[Message] = ()) -> Iterator[Piece]:
        """Reply to a spoken question piece by piece. The joined pieces equal what `answer` returns."""

    def transcribe(self, sound: Sound, sampling: Sampling = ...) -> str:
        """Write down what is said in a sound."""

    def transcribe_batch(self, sounds: Sequence[Sound], sampling: Sampling = ...) -> list[str]:
        """Write down what is said in several sounds at once."""

    def say(self, text: str, sampling: Sampling = ...) -> Answer:
        """Read a text aloud."""

    def say_batch(self, texts: Sequence[str], sampling: Sampling = ...) -> list[Answer]:
        """Read several texts aloud at once."""

    def chat(self, question: str, sampling: Sampling = ..., history: Sequence[Message] = ()) -> str:
        """Answer a text question in text."""

    def chat_batch(self, questions: Sequence[str], sampling: Sampling = ...) -> list[str]:
        """Answer several text questions in text at once."""


def answer_pieces(
    model: SpeechModel, question: Sound, sampling: Sampling, history: Sequence[Message] = ()
) -> Iterator[Piece]:
    """Stream a reply to a spoken question; one piece holds all of it where the model has `answer` but not `stream`."""
    if "stream" in model.capabilities or "answer" not in model.capabilities:
        yield from model.stream(question, sampling, history)
        return
    answer = model.answer(question, sampling, history)
    yield Piece(answer.transcript or "", answer.text or "", answer.wav, answer)
