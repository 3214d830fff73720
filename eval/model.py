"""The measured model: any speechgpt.answers.SpeechModel, or any object with answer(wav).

    model = open_measured_model("runs/toy/model", "cpu")
    model = open_measured_model("my_models:baseline", "cuda")      # a function that returns a model
    model = open_measured_model("cascade:whisper:FOLDER,LLM", "cpu")

An object with answer(wav) alone becomes a SpeechModel by AdaptedModel. Nothing else in eval looks into a model.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np

from eval.likelihood.submitted import KIND as SUBMITTED
from eval.likelihood.submitted import SubmittedScores
from eval.models.cascade import KIND as CASCADE
from eval.models.cascade import open_cascade
from eval.models.spelling import KIND as UNIT_LM
from eval.models.spelling import Speaking
from eval.test_set import TestSet
from speechgpt.answers import CAPABILITIES, Answer, Capability, NotSupported, Piece, Sound, SpeechModel
from speechgpt.sampling import Sampling
from units.audio import SAMPLE_RATE

PARTS = ("transcript", "text", "wav")
UNNAMED = "without a name"  # the name of a model that has none; its results are measured again every time


class NoAnswer(ValueError):
    """A model's answer has none of the parts that an answer has."""


class UnknownModel(ValueError):
    """There is no such model folder and no such function."""


class AdaptedModel:
    """Any object with answer(wav) as a SpeechModel.

    Args:
        model: has some of these methods, each for one input or, with the suffix `_batch`, for a list:

            * answer(wav) -> an object with some of `transcript`, `text` (strings) and `wav` (T,)
            * transcribe(wav) -> text
            * say(text) -> an object with a `wav` (T,)
            * chat(text) -> text

            Methods that have a parameter `sampling` receive one. `name` (changes when the model does), `codebook` and
            `sample_rate` (16,000 Hz without it) are read where the object has them.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    def name(self) -> str:
        """The object's name, or UNNAMED."""
        return getattr(self.model, "name", None) or UNNAMED

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The methods that the object has."""
        return frozenset(
            one for one in CAPABILITIES - {"stream"} if hasattr(self.model, one) or hasattr(self.model, f"{one}_batch")
        )

    @property
    def sample_rate(self) -> int:
        """The object's sample rate in Hz."""
        return getattr(self.model, "sample_rate", SAMPLE_RATE)

    @property
    def codebook(self) -> Any:
        """The object's codebook, or None."""
        return getattr(self.model, "codebook", None)

    def answer(self, question: Sound, sampling: Sampling = Sampling(), history: Sequence = ()) -> Answer:
        """As SpeechModel.answer; the history is ignored."""
        return self.answer_batch([question], sampling)[0]

    def answer_batch(self, questions: Sequence[Sound], sampling: Sampling = Sampling()) -> list[Answer]:
        """As SpeechModel.answer_batch. Raises NoAnswer if an object has no part of an answer."""
        return [self._answer(given) for given in self._call("answer", questions, sampling)]

    def stream(self, question: Sound, sampling: Sampling = Sampling(), history: Sequence = ()) -> Iterator[Piece]:
        """Raises NotSupported."""
        self._refuse("stream")

    def transcribe(self, sound: Sound, sampling: Sampling = Sampling()) -> str:
        """As SpeechModel.transcribe."""
        return self.transcribe_batch([sound], sampling)[0]

    def transcribe_batch(self, sounds: Sequence[Sound], sampling: Sampling = Sampling()) -> list[str]:
        """As SpeechModel.transcribe_batch."""
        return self._call("transcribe", sounds, sampling)

    def say(self, text: str, sampling: Sampling = Sampling()) -> Answer:
        """As SpeechModel.say."""
        return self.say_batch([text], sampling)[0]

    def say_batch(self, texts: Sequence[str], sampling: Sampling = Sampling()) -> list[Answer]:
        """As SpeechModel.say_batch."""
        return [self._answer(given) for given in self._call("say", texts, sampling)]

    def chat(self, question: str, sampling: Sampling = Sampling(), history: Sequence = ()) -> str:
        """As SpeechModel.chat; the history is ignored."""
        return self.chat_batch([question], sampling)[0]

    def chat_batch(self, questions: Sequence[str], sampling: Sampling = Sampling()) -> list[str]:
        """As SpeechModel.chat_batch."""
        return self._call("chat", questions, sampling)

    def _call(self, capability: Capability, inputs: Sequence, sampling: Sampling) -> list:
        batch: Any = getattr(self.model, f"{capability}_batch", None)
        single: Any = getattr(self.model, capability, None)
        if batch is None and single is None:
            self._refuse(capability)
        options = {"sampling": sampling} if "sampling" in inspect.signature(batch or single).parameters else {}
        return list(batch(inputs, **options)) if batch else [single(value, **options) for value in inputs]

    def _refuse(self, capability: Capability) -> NoReturn:
        raise NotSupported(cast(SpeechModel, self), capability)

    def _answer(self, given: Any) -> Answer:
        if not any(hasattr(given, part) for part in PARTS):
            raise NoAnswer(
                f"the model {self.name} answered with a {type(given).__name__}; an answer is an object with some "
                f"of transcript, text and wav (float, mono, {self.sample_rate} Hz)"
            )
        transcript, text, wav = (getattr(given, part, None) for part in PARTS)
        return Answer(
            transcript,
            text,
            getattr(given, "units", None),
            None if wav is None else np.asarray(wav, np.float32),
            getattr(given, "candidate", None),
            turn=getattr(given, "turn", ()),
        )


def as_speech_model(model: Any) -> SpeechModel:
    """The model itself if it has the whole protocol, else an AdaptedModel of it."""
    return model if isinstance(model, SpeechModel) else AdaptedModel(model)


def open_measured_model(
    model: str, device: str, test_set: TestSet | None = None, speaking: Speaking | None = None
) -> SpeechModel:
    """Open a model folder or a cascade, or call `module:function`, which may take `device` and returns a model.

    Results of a model without a `name` are measured again every time.

    Args:
        model: a folder, `cascade:ASR,LLM[,VOICE]` (eval/models/cascade.py), `lm:FOLDER` (eval/models/unit_lm.py),
            `scores:FOLDER` (eval/likelihood/submitted.py), or `module:function`.
        device: where it runs.
        test_set: what it is measured on: the recogniser of a cascade may need its grammar or its texts.
        speaking: how units become text, for `lm:FOLDER`.

    Raises:
        FileNotFoundError: no such folder.
        UnknownModel: no such function.
        ValueError: the folder holds no model that opens.
    """
    if model.startswith(CASCADE):
        return open_cascade(model, device, test_set)
    if model.startswith(SUBMITTED):
        return AdaptedModel(SubmittedScores(model.removeprefix(SUBMITTED)))
    if model.startswith(UNIT_LM):
        from eval.models.unit_lm import open_unit_lm

        return AdaptedModel(open_unit_lm(model.removeprefix(UNIT_LM), speaking or Speaking(), device))
    module, colon, function = model.partition(":")
    if not colon or Path(model).exists():
        from speechgpt.open_model import open_model

        return open_model(model, device)
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UnknownModel(
            f"there is no {model} ({error}); a model is a folder, module:function, or cascade:ASR,LLM"
        ) from error
    return as_speech_model(make(device=device) if "device" in inspect.signature(make).parameters else make())


def codebook_of(model: SpeechModel) -> str:
    """Name and fingerprint of a model's units; "-" for a model without a codebook."""
    codebook = getattr(model, "codebook", None)
    return f"{codebook.name} {codebook.fingerprint}" if codebook else "-"


def question_units(answer: Answer) -> int | None:
    """The number of units that a spoken question became; None for a model that does not turn speech into units."""
    parts = answer.turn[0].parts if answer.turn else ()
    return next((len(part) for part in parts if isinstance(part, tuple)), None)
