"""A spoken test set of six questions, and models that answer it, for the tests of eval."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from instruct_data.speech.voices import VoiceError, open_voice
from speechgpt.answers import Candidate
from speechgpt.dialogue import Message
from speechgpt.sampling import Sampling
from units.audio import save_wav
from units.codebook import Codebook
from units.corpus.manifest import Utterance, write_manifest

Speak = Callable[[str], np.ndarray]
CODEBOOK = Codebook("made", "mfcc", 0, 10, 50.0, "none", "abc")
CHATS = (  # question, right answer, family
    ("what is two plus three", "that makes five", "sum"),
    ("what is nine plus one", "that makes ten", "sum"),
    ("which is bigger four or eight", "eight is bigger", "compare"),
    ("what color does anna like", "anna likes green", "town"),
    ("please say the small red dog jumps", "the small red dog jumps", "say"),
    ("what day comes after monday", "it must be tuesday", "calendar"),
)
QUESTIONS = [question for question, _, _ in CHATS]
ANSWERS = [answer for _, answer, _ in CHATS]
MISSPOKEN = next(answer for _, answer, family in CHATS if family == "town")  # by the first candidate


def espeak() -> Speak:
    """Text -> wav by espeak-ng; skips the test without it."""
    voice = open_voice("espeak:en-us")
    try:
        voice.speak("hello")
    except (VoiceError, ImportError, OSError) as error:
        pytest.skip(f"no speech engine to test with: {error}")
    return voice.speak


def write_corpus(folder: Path, speak: Speak, grammar: str, grammar_name: str = "asr_grammar.jsgf") -> Path:
    """A corpus folder with every file that eval reads."""
    for name in ("test", "test_new_voice"):
        paths = [save_wav(folder / "wav" / f"q{i}.{name}.wav", speak(q)) for i, q in enumerate(QUESTIONS)]
        write_manifest(
            folder / f"{name}.jsonl",
            [Utterance(f"q/{path.stem}", path, text=q, speaker="espeak") for path, q in zip(paths, QUESTIONS)],
        )
    audio = save_wav(folder / "wav" / "a0.wav", speak(ANSWERS[0]))
    answer = Utterance("a0", audio, text=ANSWERS[0], speaker="espeak")
    write_manifest(folder / "train.jsonl", [answer])
    write_manifest(folder / "answers_unseen.jsonl", [answer])
    rows = [{"question": q, "answer": a, "family": f, "split": "test"} for q, a, f in CHATS]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "text.txt").write_text("".join(f"{q}? {a}.\n" for q, a, f in CHATS if f != "say"))
    (folder / "corpus.json").write_text(json.dumps({"answer_voice": "espeak", "new_voice": "espeak", "seed": 0}))
    (folder / grammar_name).write_text(grammar)
    return folder


class LookUpModel:
    """Recognises a question by the length of its wav, and answers it by a table in which sums are missing.

    It speaks by espeak. With self-verification, one answer is right only from the second candidate on.
    """

    name = "made 1"
    codebook = CODEBOOK

    def __init__(self, speak: Speak) -> None:
        self.speak, self.calls = speak, 0
        self.answers = {question: answer for question, answer, family in CHATS if family != "sum"}

    def transcribe_batch(self, wavs):
        self.calls += 1
        return [next(q for q in QUESTIONS if len(self.speak(q)) == len(wav)) for wav in wavs]

    def answer_batch(self, wavs, sampling=Sampling()):
        return [self.reply(question, sampling) for question in self.transcribe_batch(wavs)]

    def reply(self, question, sampling):
        text = self.answers.get(question)
        verifies = sampling.candidates > 1
        wav = self.speak("no" if text == MISSPOKEN and not verifies else text) if text else None
        candidate = Candidate((), True, number=int(text == MISSPOKEN)) if verifies else None
        turn = (Message("human", ((1, 2, 3),)),)
        return SimpleNamespace(transcript=question, text=text, wav=wav, candidate=candidate, turn=turn)

    def say_batch(self, texts):
        return [SimpleNamespace(wav=self.speak(text)) for text in texts]

    def chat_batch(self, texts):
        return [self.answers.get(text, "that makes one") for text in texts]


class TextOnly:
    """The smallest model that can be measured: it answers one wav at a time, in text."""

    name = "smallest"

    def answer(self, wav):
        return SimpleNamespace(text="eight is bigger")
