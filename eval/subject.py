"""The model that is measured, as the tasks use it: any object that answers speech.

subject = open_subject("runs/toy/model", "cpu")
subject = open_subject("my_models:baseline", "cuda")      # a function that returns a model
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.corpus import NotMeasured
from speechgpt.inference import SpeechGPT
from speechgpt.sampling import Sampling
from units.runtime.provenance import fingerprint


@dataclass(frozen=True)
class Given:
    """An answer, None where the model gave nothing. wav: float32 (T,), 16 kHz. candidate: speechgpt.answers.Candidate."""

    transcript: str | None
    text: str | None
    wav: np.ndarray | None
    candidate: Any


NOTHING = Given(None, None, None, None)  # to an utterance that was refused
PARTS = ("transcript", "text", "wav", "candidate")


class Subject:
    """A model, and what it is called.

    Args:
        model: has answer(wav), which takes a wav (T,) at 16 kHz and gives an object with some of transcript, text (strings)
            and wav (T,) at 16 kHz. What else it has is measured as well: transcribe(wav) -> text, say(text) -> an object with
            a wav, chat(text) -> text; each of them, and answer, also for lists, as answer_batch and so on. Where answer takes
            `sampling`, it can be told not to listen to itself. `codebook`, or `encoder.codebook`, names its units;
            encoder.encode(wav) makes them.
        name: of the results; as they are kept by it, it changes when the model does. None: they are never kept.
        device: where it runs.
    """

    def __init__(self, model: Any, name: str | None, device: str = "cpu") -> None:
        self.model, self.name, self.device = model, name, device
        self.parts: set[str] = set()  # of PARTS, those that its answers have had

    @property
    def codebook(self) -> str:
        """Name and fingerprint of its units, "-" if it has none."""
        encoder = getattr(self.model, "encoder", None)
        codebook = getattr(self.model, "codebook", None) or getattr(encoder, "codebook", None)
        return f"{codebook.name} {codebook.fingerprint}" if codebook else "-"

    def can(self, verb: str) -> bool:
        """Whether it has a method of this name, for one or for many."""
        return hasattr(self.model, verb) or hasattr(self.model, f"{verb}_batch")

    def answer(self, wavs: Sequence[np.ndarray], once: bool = False) -> list[Given]:
        """Answers to wavs (T,). once: if it listens to what it says, it shall not."""
        return [self._answer(given) for given in self._call("answer", wavs, once)]

    def transcribe(self, wavs: Sequence[np.ndarray]) -> list[str | None]:
        """What it writes down of wavs (T,)."""
        return self._call("transcribe", wavs)

    def say(self, texts: Sequence[str]) -> list[Given]:
        """Texts, spoken."""
        return [self._answer(given) for given in self._call("say", texts)]

    def chat(self, texts: Sequence[str]) -> list[str | None]:
        """Its text answers to texts."""
        return self._call("chat", texts)

    def units_in(self, wav: np.ndarray) -> int | None:
        """Units of a wav, None if it makes none."""
        encoder = getattr(self.model, "encoder", None)
        return len(encoder.encode(wav).ids) if encoder is not None and hasattr(encoder, "encode") else None

    def _call(self, verb: str, inputs: Sequence, once: bool = False) -> list:
        if not self.can(verb):
            raise NotMeasured(f"the model has no {verb}")
        many: Any = getattr(self.model, f"{verb}_batch", None)
        one: Any = getattr(self.model, verb, None)
        takes = once and "sampling" in inspect.signature(many or one).parameters
        told = {"sampling": Sampling(candidates=1)} if takes else {}
        return list(many(inputs, **told)) if many else [one(value, **told) for value in inputs]

    def _answer(self, given: Any) -> Given:
        has = [part for part in PARTS if hasattr(given, part)]
        if not set(has) - {"candidate"}:
            raise ValueError(
                f"{self.name or 'the model'} answered with a {type(given).__name__}; an answer is an object with some of "
                "transcript, text and wav (float, mono, 16 kHz)"
            )
        self.parts.update(has)
        transcript, text, wav, candidate = (getattr(given, part, None) for part in PARTS)
        return Given(transcript, text, None if wav is None else np.asarray(wav, np.float32), candidate)


def open_subject(model: str, device: str) -> Subject:
    """Open a model folder, or call the function `module:function`, which may take `device`, for a model.

    A model of a function is called what its `name` says; without one its results are never kept for another time.

    Raises: FileNotFoundError or ValueError if there is no such folder or function.
    """
    module, colon, function = model.partition(":")
    if not colon or Path(model).exists():
        folder = Path(model)
        return Subject(SpeechGPT.from_pretrained(folder, device), f"{folder.name} {fingerprint(folder)}", device)
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"there is no {model} ({error}); a model is a folder, or module:function") from error
    made = make(device=device) if "device" in inspect.signature(make).parameters else make()
    return Subject(made, getattr(made, "name", None), device)
