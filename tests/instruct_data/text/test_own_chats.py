"""A language model's own answers as chats: nothing is asked twice, and what is left out is counted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from instruct_data.text.completion import CompletionError, LocalModel, TruncatedText
from instruct_data.text.own import chats as own_chats
from instruct_data.text.own.chats import FAMILY, OwnChatConfig
from instruct_data.text.own.plain_questions import plain_questions
from instruct_data.text.reasons import TextReason
from instruct_data.text.sources import NothingKept
from units.runtime.command import SOME_REFUSED

ANSWERS = {
    "good": "It is a plain answer.",
    "cut": TruncatedText("it goes on and"),
    "empty": "  ",
    "failed": CompletionError(TextReason.NO_COMPLETION, "no"),
    "long": "word " * 50,
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """The prompts that reach the model, whose answers are ANSWERS."""
    prompts: list[tuple] = []

    def completions(self: LocalModel, some: Sequence[tuple]) -> Iterator[tuple[int, object]]:
        for number, prompt in enumerate(some):
            prompts.append(prompt)
            yield number, ANSWERS[prompt[-1]["content"]]

    monkeypatch.setattr(LocalModel, "completions", completions)
    return prompts


def test_answers_are_kept_cached_or_counted(asked: list[tuple], tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("good\ncut\n\nempty\nfailed\nlong\n")
    config = OwnChatConfig(local="tiny", questions=tmp_path / "q.txt", at_once=2)
    assert own_chats.main(tmp_path / "own.jsonl", config) == SOME_REFUSED
    [chat] = [json.loads(line) for line in (tmp_path / "own.jsonl").read_text().splitlines()]
    assert chat == {"question": "good", "answer": ANSWERS["good"], "family": FAMILY}
    listed = [json.loads(line) for line in (tmp_path / "own.jsonl.refused.jsonl").read_text().splitlines()]
    assert {row["id"]: row["reason"] for row in listed} == {
        "q.txt:2": "out_of_tokens",
        "q.txt:4": "no_word",
        "q.txt:5": "no_completion",
        "q.txt:6": "long_answer",
    }
    assert asked[0] == ({"role": "system", "content": config.system}, {"role": "user", "content": "good"})
    before = len(asked)
    own_chats.main(tmp_path / "own.jsonl", config)
    assert [prompt[-1]["content"] for prompt in asked[before:]] == ["cut", "failed"]  # whole answers are cached


def test_without_a_single_answer_nothing_is_written(asked: list[tuple], tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("cut\n")
    with pytest.raises(NothingKept, match="no answer of tiny to 1 questions"):
        own_chats.main(tmp_path / "own.jsonl", OwnChatConfig(local="tiny", questions=tmp_path / "q.txt", system=""))
    assert not (tmp_path / "own.jsonl").exists() and len(asked[0]) == 1


def test_plain_questions_are_the_same_for_a_seed_and_not_those_of_the_evaluation() -> None:
    found = plain_questions()
    assert len(found) == len(set(found)) > 300
    assert plain_questions(20, seed=1) == plain_questions(seed=1)[:20] != plain_questions(20, seed=2)
    kept = Path(__file__).parents[3] / "eval/kept/plain.jsonl"
    measured = {json.loads(line)["question"] for line in kept.read_text().splitlines()}
    assert not measured & set(found)
