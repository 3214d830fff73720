"""Test sets: corpus folders, manifests, and what they lack."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from spoken_test_set import CHATS

from eval.test_set import MissingAnswer, NotMeasured, TestSet, spread
from units.corpus.manifest import Utterance, write_manifest
from units.runtime.files.json_files import FileError, FileReason


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


ROWS = [{"question": q, "answer": a, "family": f} for q, a, f in CHATS]
PLAIN = "\n".join(map(json.dumps, ROWS)).encode()
FORMS = {
    "byte order mark": b"\xef\xbb\xbf" + PLAIN,
    "blank lines": PLAIN.replace(b"\n", b"\n\n \t\n") + b"\n\n",
    "CRLF": PLAIN.replace(b"\n", b"\r\n"),
    "separators of lines in an answer": PLAIN + b"\n" + '{"question": "x", "answer": "one\u2028two\x85"}'.encode(),
    "turns": PLAIN + b'\n{"turns": [["x", "one"], ["what is two plus three", "not this one"], ["y", "two"]]}',
}


@pytest.mark.parametrize("form", FORMS)
def test_chats_are_read_however_they_were_saved(corpus: Path, form: str) -> None:
    (corpus / "chats.jsonl").write_bytes(FORMS[form])
    found = TestSet(corpus)
    assert [item.gold for item in found.test] == [answer for _, answer, _ in CHATS]
    assert [item.family for item in found.test] == [family for _, _, family in CHATS]
    extra = {"separators of lines in an answer": {"x": "one\u2028two\x85"}, "turns": {"x": "one", "y": "two"}}
    more = {question: chat.answer for question, chat in found.answers.items() if question in ("x", "y")}
    assert more == extra.get(form, {})
    (corpus / "chats.jsonl").rename(corpus / "plain")
    (corpus / "chats.jsonl.gz").write_bytes(gzip.compress(FORMS[form]))
    assert TestSet(corpus).answers == found.answers


def test_a_question_is_found_by_its_words(corpus: Path) -> None:
    rows = [{"question": f"{q.upper()}?", "answer": a} for q, a, _ in CHATS]
    (corpus / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [item.gold for item in TestSet(corpus).test] == [answer for _, answer, _ in CHATS]


BAD_CHATS = {
    '{"question": "a"}': FileReason.INVALID_FIELD,
    '{"question": "a", "answer": null}': FileReason.INVALID_FIELD,
    '{"question": "a", "answer": 4}': FileReason.INVALID_FIELD,
    '{"turns": []}': FileReason.INVALID_FIELD,
    '{"turns": [["a"]]}': FileReason.INVALID_FIELD,
    '{"turns": "ab"}': FileReason.INVALID_FIELD,
    '["a", "b"]': FileReason.NOT_JSON,
    '{"question": "a", "ans': FileReason.NOT_JSON,
}


@pytest.mark.parametrize("line", BAD_CHATS)
def test_a_line_that_is_no_chat_is_named(corpus: Path, line: str) -> None:
    (corpus / "chats.jsonl").write_bytes(PLAIN + b"\n\n" + line.encode())
    with pytest.raises(FileError, match="chats.jsonl:8: ") as error:
        _ = TestSet(corpus).test
    assert error.value.reason == BAD_CHATS[line]


@pytest.mark.parametrize("name", ["chats.jsonl", "corpus.json", "text.txt"])
def test_files_of_a_corpus_that_are_not_text_are_named(corpus: Path, name: str) -> None:
    (corpus / name).write_bytes(b"caf\xe9\n")
    found = TestSet(corpus)
    with pytest.raises(FileError, match=name) as error:
        _ = (found.answers, found.facts, found.text_lines())
    assert error.value.reason == FileReason.NOT_UTF8


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
