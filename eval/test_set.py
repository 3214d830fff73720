"""Test sets: the spoken questions of a corpus folder with their right answers, or the utterances of any manifest.

TestSet("runs/toy/corpus").test[0].wav()      # with the right answer, its .gold
TestSet("dev.jsonl").test[0].question         # a manifest has no answers, only what was said
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.metrics import words
from units.corpus.manifest import Utterance, read_manifest
from units.runtime.files.json_files import FileError, FileReason, json_lines, read_json, read_text
from units.runtime.provenance import content_hash, digest

if TYPE_CHECKING:
    import numpy as np

GRAMMAR = "asr_grammar.jsgf"  # of the evaluation ASR
OLD_GRAMMAR = "judge.jsgf"  # the name of that file in corpora of release 0.1.0
# Every file of a corpus folder that a task may read, besides the audio.
FILES = (
    "test.jsonl",
    "test_new_voice.jsonl",
    "answers_unseen.jsonl",
    "train.jsonl",
    "chats.jsonl",
    "text.txt",
    "corpus.json",
    "qa.jsonl",
    "instructed.jsonl",
    "texts.txt",
    "choices.jsonl",
    "plain.jsonl",
    "harmful.txt",
    GRAMMAR,
    OLD_GRAMMAR,
)
# Where the tables, or else the wavs, of suites of pairs may lie (eval/likelihood/folders.py).
SUITE_FOLDERS = ("", "*/", "*/*/", "*/*/*/")
FLAT_FOLDERS = ("sStoryCloze", "sSC", "tStoryCloze", "tSC", "salmon_benchmark/*", "salmon/*")


class NotMeasured(ValueError):
    """A task needs something that this test set or these answers lack; the message names it."""


class MissingAnswer(ValueError):
    """A test question has no record in chats.jsonl."""


@dataclass(frozen=True)
class TestItem:
    """One test utterance. gold, family: the right answer and its kind, "" where they are unknown."""

    __test__ = False  # not a test class of pytest

    utterance: Utterance
    gold: str = ""
    family: str = ""

    @property
    def id(self) -> str:
        """The utterance's id."""
        return self.utterance.id

    @property
    def question(self) -> str:
        """What is said in it."""
        return self.utterance.text or ""

    @property
    def speaker(self) -> str:
        """Who says it, "" if unknown."""
        return self.utterance.speaker or ""

    @property
    def line(self) -> str:
        """Question and answer as plain words, as TestSet.text_lines has them."""
        return " ".join(words(f"{self.question} {self.gold}"))

    def wav(self) -> np.ndarray:
        """The audio as a wav, float32 (T,). Raises AudioError or OSError."""
        from units.audio import load_wav

        return load_wav(self.utterance.audio, self.utterance.start, self.utterance.duration)


def spread(items: Sequence, limit: int | None) -> list:
    """At most `limit` items, evenly spaced, so that every part of a sorted list is represented."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]


@dataclass(frozen=True)
class Chat:
    """A question of chats.jsonl with its right answer. family: its kind, "" where it is unknown."""

    question: str
    answer: str
    family: str = ""


def _chats(record: dict[str, Any], where: str) -> list[Chat]:
    """The turns of a row of chats.jsonl, at least one. where: FILE:LINE.

        {"question": "what is two plus two", "answer": "that makes four", "family": "sum"}
        {"turns": [["who was ada lovelace", "a mathematician"], ["when did she live", "from 1815 to 1852"]]}

    Raises: FileError.
    """
    turns: Any = record["turns"] if "turns" in record else [[record.get("question"), record.get("answer")]]
    pairs = isinstance(turns, list) and all(isinstance(turn, list) and len(turn) == 2 for turn in turns)
    if not pairs or not turns or not all(isinstance(text, str) for turn in turns for text in turn):
        raise FileError(
            FileReason.INVALID_FIELD,
            f"{where}: a chat has a question and an answer, or turns, a list of [question, answer]; found "
            f"{str(record)[:60]}",
        )
    family = record.get("family")
    return [Chat(question, answer, family if isinstance(family, str) else "") for question, answer in turns]


class TestSet:
    """A corpus folder with test.jsonl and any of the other FILES, or one manifest that is the test set.

    chats.jsonl may be compressed, chats.jsonl.gz.

    Args:
        path: the folder or the manifest.
        grammar: JSGF grammar of the evaluation ASR; None takes asr_grammar.jsgf of the folder.
        limit: the most examples of each list, evenly spaced; None takes all.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: the limit is below 1.
    """

    __test__ = False

    def __init__(self, path: str | Path, grammar: str | Path | None = None, limit: int | None = None) -> None:
        self.path, self.limit = Path(path), limit
        if limit is not None and limit < 1:
            raise ValueError(f"limit is {limit}; allowed: 1 or more examples")
        if not self.path.exists():
            raise FileNotFoundError(
                f"no corpus at {self.path}; a corpus is a manifest, or a folder with test.jsonl "
                "(instruct_data.toy writes one)"
            )
        paths = {name: self.path / name for name in FILES} if self.path.is_dir() else {"test.jsonl": self.path}
        if "chats.jsonl" in paths and not paths["chats.jsonl"].exists():
            paths["chats.jsonl"] = self.path / "chats.jsonl.gz"
        self._files = {name: file for name, file in paths.items() if file.exists()}
        if grammar is not None:
            self._files.pop(OLD_GRAMMAR, None)
            self._files[GRAMMAR] = Path(grammar)

    @cached_property
    def name(self) -> str:
        """The path's name and a hash of manifests, texts, grammar, and tables of suites of pairs.

        Audio files are not read for it; those of suites without a table are hashed by their names.
        """
        tables = {
            str(table.relative_to(self.path)): table
            for folder in SUITE_FOLDERS
            for table in sorted(self.path.glob(f"{folder}gold.csv"))
        }
        found = content_hash(self._files | tables)
        wavs = [wav.relative_to(self.path) for folder in FLAT_FOLDERS for wav in self.path.glob(f"{folder}/*.wav")]
        listed = [found, *(f"\n{wav}" for wav in sorted(wavs))]
        return f"{self.path.stem} {digest(listed) if wavs else found}"

    def has(self, name: str) -> bool:
        """Whether one of FILES exists."""
        return name in self._files

    def file(self, name: str) -> Path:
        """The path of one of FILES. Raises NotMeasured if it does not exist."""
        if not self.has(name):
            raise NotMeasured(f"{self.path} has no {name}" if self.path.is_dir() else f"a manifest has no {name}")
        return self._files[name]

    @property
    def grammar(self) -> Path | None:
        """The grammar of the evaluation ASR, if there is one."""
        return self._files.get(GRAMMAR) or self._files.get(OLD_GRAMMAR)

    @cached_property
    def answers(self) -> dict[str, Chat]:
        """Question -> its right answer, from chats.jsonl.

        The turns that follow the first one of a chat are questions too, unless another chat begins with the same one.

        Raises:
            NotMeasured: there is no such file.
            FileError: a line is not a chat; the message names it.
        """
        path = self.file("chats.jsonl")
        first: dict[str, Chat] = {}
        later: dict[str, Chat] = {}
        for number, record in json_lines(path):
            chats = _chats(record, f"{path}:{number}")
            first[chats[0].question] = chats[0]
            later |= {chat.question: chat for chat in chats[1:]}
        return later | first

    @cached_property
    def _answers_by_words(self) -> dict[str, Chat]:
        return {" ".join(words(question)): chat for question, chat in self.answers.items()}

    def answer_to(self, question: str) -> Chat | None:
        """The right answer to a question, which may differ in case and punctuation; None if there is none.

        Raises: as answers.
        """
        return self.answers.get(question) or self._answers_by_words.get(" ".join(words(question)))

    @cached_property
    def accepted(self) -> dict[str, list[str]]:
        """Id of a question -> the answers that count as right, from qa.jsonl.

        Raises:
            NotMeasured: there is no such file.
            FileError: a line is something else.
        """
        rows = json_lines(self.file("qa.jsonl"), {"id": str, "answers": list})
        return {row["id"]: [str(answer) for answer in row["answers"]] for _, row in rows}

    @cached_property
    def facts(self) -> dict:
        """The content of corpus.json; empty without that file. Raises FileError."""
        return read_json(self.file("corpus.json")) if self.has("corpus.json") else {}

    @cached_property
    def test(self) -> list[TestItem]:
        """The test utterances."""
        return self.items("test.jsonl")

    @cached_property
    def new_voice(self) -> list[TestItem]:
        """The test questions in a voice that is in no training set."""
        return self.items("test_new_voice.jsonl")

    def items(self, name: str) -> list[TestItem]:
        """The utterances of a manifest that have a text, with their answers if the folder has chats.jsonl.

        Raises:
            NotMeasured: there are none.
            MissingAnswer: chats.jsonl lacks one of the questions.
        """
        spoken = [utterance for utterance in read_manifest(self.file(name)) if words(utterance.text)]
        if not spoken:
            raise NotMeasured(f"{self.file(name)} has no utterance with a text")
        return spread([self._item(utterance, name) for utterance in spoken], self.limit)

    def _item(self, utterance: Utterance, name: str) -> TestItem:
        if not self.has("chats.jsonl") or name == "answers_unseen.jsonl":
            return TestItem(utterance)
        chat = self.answer_to(utterance.text or "")
        if chat is None:
            raise MissingAnswer(
                f"{utterance.id} of {name} asks {utterance.text!r}, which is not in chats.jsonl; "
                "make the corpus again, or remove chats.jsonl to measure transcription alone"
            )
        return TestItem(utterance, chat.answer, chat.family)

    def trained_sentences(self) -> set[str | None]:
        """Sentences that the answer voice speaks in the training audio. Raises NotMeasured where that is unknown."""
        voice = self.facts.get("answer_voice")
        if voice is None:
            raise NotMeasured(f"the corpus.json of {self.path} does not name the answer voice")
        return {u.text for u in read_manifest(self.file("train.jsonl")) if u.speaker == voice}

    def text_lines(self) -> set[str]:
        """Lines that the text LLM was trained on, as plain words. Raises NotMeasured where they are unknown."""
        return {" ".join(words(line)) for line in read_text(self.file("text.txt")).split("\n")}
