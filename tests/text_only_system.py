"""A small system that is not SpeechGPT, for tests of the seam: it takes speech, answers in text, and cannot speak."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from speechgpt import open_model
from speechgpt.answers import Answer, Capability, NotSupported, Piece, Sound
from speechgpt.checkpoint import CheckpointFacts
from speechgpt.dialogue import Message, Speech
from speechgpt.sampling import Sampling
from units.audio import load_wav

SYSTEM = "loudness"


class LoudnessModel:
    """Answers how loud a question is. Its threshold lies in `speechgpt.json`."""

    sample_rate = 16_000
    capabilities: frozenset[Capability] = frozenset({"answer", "transcribe", "chat"})

    def __init__(self, folder: Path, threshold: float, device: str) -> None:
        self.name, self.threshold, self.device = f"{SYSTEM} {folder.name}", threshold, device

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu", dtype: str | None = None) -> LoudnessModel:
        facts = CheckpointFacts.load(folder)
        return cls(Path(folder), facts.extra["threshold"], device)

    def answer(self, question: Sound, sampling: Sampling = Sampling(), history: Sequence[Message] = ()) -> Answer:
        asked = Message("human", (Speech("question.wav"),))
        text = self.transcribe(question)
        return Answer(None, text, None, None, turn=(asked, Message("assistant", (text,))))

    def answer_batch(self, questions: Sequence[Sound], sampling: Sampling = Sampling()) -> list[Answer]:
        return [self.answer(question, sampling) for question in questions]

    def stream(
        self, question: Sound, sampling: Sampling = Sampling(), history: Sequence[Message] = ()
    ) -> Iterator[Piece]:
        raise NotSupported(self, "stream")

    def transcribe(self, sound: Sound, sampling: Sampling = Sampling()) -> str:
        wav = sound if isinstance(sound, np.ndarray) else load_wav(sound)
        return "loud" if np.abs(wav).mean() > self.threshold else "quiet"

    def transcribe_batch(self, sounds: Sequence[Sound], sampling: Sampling = Sampling()) -> list[str]:
        return [self.transcribe(sound, sampling) for sound in sounds]

    def say(self, text: str, sampling: Sampling = Sampling()) -> Answer:
        raise NotSupported(self, "say", "it has no vocoder")

    def say_batch(self, texts: Sequence[str], sampling: Sampling = Sampling()) -> list[Answer]:
        raise NotSupported(self, "say", "it has no vocoder")

    def chat(self, question: str, sampling: Sampling = Sampling(), history: Sequence[Message] = ()) -> str:
        return f"{question}, after {len(history)} messages"

    def chat_batch(self, questions: Sequence[str], sampling: Sampling = Sampling()) -> list[str]:
        return [self.chat(question, sampling) for question in questions]


def loudness_folder(folder: Path) -> Path:
    """Write a model folder of this system."""
    folder.mkdir()
    CheckpointFacts(None, "stage1", system=SYSTEM, extra={"threshold": 0.1}).save(folder)
    return folder


def install(monkeypatch: pytest.MonkeyPatch, target: str = "text_only_system:LoudnessModel") -> None:
    """Make the system's entry point known, as an installed package would."""
    entry = open_model.EntryPoint(SYSTEM, target, open_model.GROUP)
    monkeypatch.setattr(open_model, "entry_points", lambda group: [entry] if group == open_model.GROUP else [])
