"""What a model is asked: the spoken questions of a corpus folder, or the utterances of any manifest.

Corpus("runs/toy/corpus").test[0].wav()      # with the right answer, its .gold
Corpus("dev.jsonl").test[0].question         # of a manifest only what was said is known
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from eval.metrics import words
from units.audio import load_wav
from units.corpus.manifest import Utterance, read_manifest
from units.runtime.provenance import content_hash

# All that tasks read of a folder, beside the audio.
FILES = (
    "test.jsonl", "test_new_voice.jsonl", "answers_unseen.jsonl", "train.jsonl", "chats.jsonl", "text.txt", "corpus.json",
    "judge.jsgf",
)  # fmt: skip


class NotMeasured(Exception):
    """What a task needs and this model or corpus lacks; the message says which."""


@dataclass(frozen=True)
class Item:
    """One utterance that is asked. gold, family: the right answer and its kind, "" where they are unknown."""

    utterance: Utterance
    gold: str = ""
    family: str = ""

    @property
    def id(self) -> str:
        return self.utterance.id

    @property
    def question(self) -> str:
        return self.utterance.text or ""

    @property
    def speaker(self) -> str:
        return self.utterance.speaker or ""

    @property
    def in_words(self) -> str:
        """Question and answer as plain words."""
        return " ".join(words(f"{self.question} {self.gold}"))

    def wav(self) -> np.ndarray:
        """Its sound, (T,)."""
        return load_wav(self.utterance.audio, self.utterance.start, self.utterance.duration)


def spread(items: Sequence, limit: int | None) -> list:
    """At most `limit` items, evenly spaced over all of them, so that every part of an ordered list is there."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]


class Corpus:
    """A folder with test.jsonl and whatever of the other FILES there is, or one manifest, which then is the test set.

    Args:
        path: the folder, or the manifest.
        grammar: of the judge; None takes the folder's judge.jsgf.
        limit: at most so many examples of each set, evenly spaced; None takes all.

    Raises: FileNotFoundError if there is no such path.
    """

    def __init__(self, path: str | Path, grammar: str | Path | None = None, limit: int | None = None) -> None:
        self.path, self.limit = Path(path), limit
        if not self.path.exists():
            raise FileNotFoundError(
                f"no corpus at {self.path}; it is a manifest, or a folder with test.jsonl (instruct_data.toy writes one)"
            )
        here = {name: self.path / name for name in FILES} if self.path.is_dir() else {"test.jsonl": self.path}
        self._files = {name: file for name, file in here.items() if file.exists()}
        if grammar is not None:
            self._files["judge.jsgf"] = Path(grammar)

    @cached_property
    def name(self) -> str:
        """The path's name, and a hash of the manifests, the texts and the grammar; the audio is not looked into."""
        return f"{self.path.stem} {content_hash(self._files)}"

    def has(self, name: str) -> bool:
        """Whether one of FILES is there."""
        return name in self._files

    def file(self, name: str) -> Path:
        """One of FILES. Raises NotMeasured if it is not there."""
        if not self.has(name):
            raise NotMeasured(f"{self.path} has no {name}" if self.path.is_dir() else f"a manifest has no {name}")
        return self._files[name]

    @cached_property
    def answers(self) -> dict[str, dict]:
        """Question text -> its record in chats.jsonl. Raises NotMeasured if there is none."""
        lines = self.file("chats.jsonl").read_text(encoding="utf-8").splitlines()
        return {record["question"]: record for record in map(json.loads, lines)}

    @cached_property
    def world(self) -> dict:
        """corpus.json; of a corpus without one nothing is known."""
        return json.loads(self.file("corpus.json").read_text(encoding="utf-8")) if self.has("corpus.json") else {}

    @cached_property
    def test(self) -> list[Item]:
        return self.items("test.jsonl")

    @cached_property
    def new_voice(self) -> list[Item]:
        return self.items("test_new_voice.jsonl")

    def items(self, name: str) -> list[Item]:
        """The utterances of a manifest that have a text, with their answers if the corpus has answers.

        Raises: NotMeasured if there are none; ValueError if it has answers, but not theirs.
        """
        said = [u for u in read_manifest(self.file(name)) if words(u.text)]
        if not said:
            raise NotMeasured(f"{self.file(name)} has no utterance with a text")
        return spread([self._item(utterance, name) for utterance in said], self.limit)

    def _item(self, utterance: Utterance, name: str) -> Item:
        if not self.has("chats.jsonl") or name == "answers_unseen.jsonl":
            return Item(utterance)
        chat = self.answers.get(utterance.text or "")
        if chat is None:
            raise ValueError(
                f"{utterance.id} of {name} asks {utterance.text!r}, which chats.jsonl does not have; "
                "make the corpus again, or take that file away to measure hearing alone"
            )
        return Item(utterance, chat["answer"], chat.get("family", ""))

    def said_in_training(self) -> set[str | None]:
        """Sentences that the answer voice says in the training audio. Raises NotMeasured where that is unknown."""
        voice = self.world.get("answer_voice")
        if voice is None:
            raise NotMeasured(f"{self.path} does not say which voice answers")
        return {u.text for u in read_manifest(self.file("train.jsonl")) if u.speaker == voice}

    def read_in_training(self) -> set[str]:
        """Lines that the text LLM read, as plain words. Raises NotMeasured where that is unknown."""
        return {" ".join(words(line)) for line in self.file("text.txt").read_text(encoding="utf-8").splitlines()}
