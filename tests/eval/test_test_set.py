"""Test sets: corpus folders, manifests, and what they lack."""

from __future__ import annotations

from pathlib import Path

import pytest
from spoken_test_set import CHATS

from eval.test_set import MissingAnswer, NotMeasured, TestSet, spread
from units.corpus.manifest import Utterance, write_manifest


def test_spread_keeps_every_part() -> None:
    assert spread(list(range(10)), 5) == [0, 2, 4, 6, 8]
    assert spread([1, 2], None) == spread([1, 2], 9) == [1, 2]


def test_a_limit_is_at_least_one(tmp_path: Path) -> None:
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=f"limit is {wrong}"):
            TestSet(tmp_path, limit=wrong)


def test_questions_without_answers_are_refused(corpus: Path) -> None:
    (corpus / "chats.jsonl").write_text("")
    with pytest.raises(MissingAnswer, match="chats.jsonl"):
        _ = TestSet(corpus).test
    (corpus / "chats.jsonl").unlink()
    assert TestSet(corpus).test[0].gold == ""


def test_a_corpus_of_release_0_1_0_has_its_grammar_under_the_old_name(corpus: Path, tmp_path: Path) -> None:
    assert TestSet(corpus).grammar == corpus / "asr_grammar.jsgf"
    (corpus / "asr_grammar.jsgf").rename(corpus / "judge.jsgf")
    assert TestSet(corpus).grammar == corpus / "judge.jsgf"
    assert TestSet(corpus, tmp_path / "given.jsgf").grammar == tmp_path / "given.jsgf"
    (corpus / "judge.jsgf").unlink()
    assert TestSet(corpus).grammar is None


def test_a_manifest_without_texts_has_no_test_items(tmp_path: Path) -> None:
    write_manifest(tmp_path / "own.jsonl", [Utterance("mute", tmp_path / "a.wav")])
    with pytest.raises(NotMeasured, match=r"own\.jsonl"):
        _ = TestSet(tmp_path / "own.jsonl").test
    with pytest.raises(FileNotFoundError, match="none"):
        TestSet(tmp_path / "none")


def test_a_corpus_tells_trained_sentences_and_text_lines(corpus: Path) -> None:
    test_set = TestSet(corpus)
    assert test_set.trained_sentences() == {CHATS[0][1]}
    assert {item.line for item in test_set.test} - test_set.text_lines() == {
        "please say the small red dog jumps the small red dog jumps"
    }
    (corpus / "corpus.json").unlink()
    with pytest.raises(NotMeasured, match="answer voice"):
        TestSet(corpus).trained_sentences()
