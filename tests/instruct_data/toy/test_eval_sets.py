"""Suites made here: pairs that differ as they should, in a layout that eval reads as the published ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from spoken_test_set import espeak

from eval.likelihood.flat_folders import stories
from eval.likelihood.zerospeech import lexical, syntactic
from instruct_data.toy import eval_sets
from instruct_data.toy.eval_sets import (
    OTHER_WORDS,
    EvalSetConfig,
    lexical_lines,
    main,
    sentence_pairs,
    story_lines,
    words_and_non_words,
)
from instruct_data.toy.grammar import vocabulary

FREQUENCIES = Counter(dict.fromkeys(vocabulary(), 3))


def test_non_words_are_no_words_and_differ_little() -> None:
    pairs = words_and_non_words(100, FREQUENCIES, 0)
    words, non_words = zip(*pairs)
    assert len(set(words)) == len(set(non_words)) == len(pairs) >= 130
    assert not set(non_words) & {*vocabulary(), *OTHER_WORDS}
    for word, wrong in pairs:
        assert len(word) == len(wrong) and 1 <= sum(a != b for a, b in zip(word, wrong)) <= 2 and word[0] == wrong[0]
    assert {word for word in words if not FREQUENCIES[word]} == set(words) - set(vocabulary())
    assert pairs == words_and_non_words(100, FREQUENCIES, 0) != words_and_non_words(100, FREQUENCIES, 1)


def test_sentences_differ_in_one_thing() -> None:
    pairs = sentence_pairs(60, 0)
    assert len(set(pairs)) == 60 and Counter(kind for kind, *_ in pairs) == {
        "verb_agreement": 20, "auxiliary_agreement": 20, "word_order": 20
    }  # fmt: skip
    for kind, _, right, wrong in pairs:
        a, b = right.split(), wrong.split()
        assert len(a) == len(b) and right != wrong
        assert sorted(a) == sorted(b) if kind == "word_order" else sum(x != y for x, y in zip(a, b)) == 1


def test_a_story_ends_as_it_began() -> None:
    for topic in (False, True):
        lines = story_lines(EvalSetConfig(stories=9), topic)
        assert [line.stem for line in lines[:4]] == ["0_a_correct", "0_b_incorrect", "1_a_correct", "1_b_incorrect"]
        for right, wrong in zip(lines[::2], lines[1::2]):
            assert right.voice == wrong.voice and right.text.split("?")[0] == wrong.text.split("?")[0] != right.text
            assert right.text != wrong.text


def test_the_folders_are_read_as_the_published_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    espeak()
    monkeypatch.setattr(eval_sets, "VOICES", ("espeak:en-us", "espeak:en-us+f2"))
    config = EvalSetConfig(words=4, sentences=6, stories=2)
    main(tmp_path, config, workers=1)
    words = lexical(tmp_path / "lexical" / "dev")
    assert len(words.pairs) == 2 * 6 and not words.flat and len(words.files) == 24
    assert {band.split("/")[0] for pair in words.pairs for band in pair.bands} == {"frequency", "length"}
    assert {pair.item for pair in words.pairs if "frequency/oov" in pair.bands} == {"5", "6"}
    grammar = syntactic(tmp_path / "syntactic" / "dev")
    assert len(grammar.pairs) == 12 and {pair.bands for pair in grammar.pairs} == {
        ("type/verb_agreement",), ("type/auxiliary_agreement",), ("type/word_order",)
    }  # fmt: skip
    assert len(stories(tmp_path / "sStoryCloze", "s").pairs) == len(stories(tmp_path / "tStoryCloze", "t").pairs) == 2
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.wav")}
    main(tmp_path, config, workers=1)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.wav")}


def test_lexical_rows_name_word_and_frequency() -> None:
    [right, wrong, *_] = lexical_lines(EvalSetConfig(words=1), FREQUENCIES)
    assert (right.row["correct"], wrong.row["correct"], right.row["frequency"], wrong.row["frequency"]) == (1, 0, 3, "")
    assert right.row["word"] == right.text != wrong.text == wrong.row["word"]
