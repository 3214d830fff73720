"""Error rates and their standard errors against numbers worked by hand."""

from __future__ import annotations

import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics import (
    Score,
    accuracy,
    character_error_rate,
    character_errors,
    folded,
    ratio,
    word_error_rate,
    word_errors,
    words,
)
from instruct_data.toy.world import reading_text, toy_text


def test_word_errors_by_hand():
    assert word_errors("two plus two", "two plus two") == (0, 3)
    assert word_errors("two plus two", "two minus two please") == (2, 3)  # one swapped, one added
    assert word_errors("Two, plus two!", "two  PLUS") == (1, 3)  # case and punctuation do not count
    assert word_errors("two plus two", None) == (3, 3)
    assert word_errors(None, "two") == (1, 0)
    assert word_errors("one two three", "one two three") == (0, 3)  # number words stay words


def test_words_of_any_script():
    assert words("नमस्ते दुनिया।") == ["नमस्ते", "दुनिया"]  # vowel signs are part of the word
    assert words("Don\u2019t") == words("don't") == ["don't"]
    assert words("cafe\u0301") == words("café") == ["café"]
    assert words("he said 'yes', the dogs' way \u2018no\u2019") == "he said yes the dogs way no".split()
    assert words("می\u200cروم") == ["میروم"] and words("snake_case, ok! ❤\ufe0f ''") == ["snake", "case", "ok"]
    assert words("可以，好") == ["可以", "好"]


SAME = (  # two ways to write the same words
    *[("İstanbul", "istanbul"), ("IŞIK", "ışık"), ("DIŞİŞLERİ", "dışişleri"), ("iğdır", "IĞDIR")],
    *[("Straße", "STRASSE"), ("ΑΘΗΝΑ", "Αθήνα"), ("ΟΔΟΣ", "οδός"), ("Μαΐου", "ΜΑΪΟΥ"), ("ЁЖ", "ёж"), ("Ǆ", "dž")],
    *[("ＡＢＣ　１２", "abc 12"), ("ｶﾞｷﾞ", "ガギ"), ("ﬁne eﬀort", "fine effort"), ("ĳs", "ijs"), ("x²", "x2")],
    *[("مُحَمَّد", "محمد"), ("كتـــاب", "كتاب"), ("٣٤٥", "345"), ("۱۲", "१२"), ("שָׁלוֹם", "שלום"), ("قُرآن", "قرآن")],
    *[("замо́к", "замок"), ("Сло́во", "слово"), ("don’t", "DON'T"), ("don´t", "don`t"), ("o‘clock", "oʻclock")],
    *[("’tis ʼtis", "tis tis"), ("a\ufe0fb", "ab"), ("1\ufe0f\u20e3", "1"), ("Apple™ ok", "apple ok"), ("3½", "3 1/2")],
    *[
        ("cafe\u0301", "CAFÉ"),
        ("क़लम", "क\u093cलम"),
        ("Ⅳ", "iv"),
        ("ａ\u0301", "á"),
        ("\u00a8a", "a"),
        ("ﷺ", "صلى الله عليه وسلم"),
    ],
    *[("re\u00adsume", "resume"), ("နေ", "နေ"), ("ＤＯＮ＇Ｔ", "don't"), ("հա՚", "հա")],
)
DIFFERENT = (  # marks that make another letter, or another sound
    *[("é", "e"), ("ü", "u"), ("ñ", "n"), ("й", "и"), ("ё", "е"), ("ќ", "к"), ("か", "が"), ("कि", "की"), ("है", "हे")],
    *[("آن", "ان"), ("أ", "ا"), ("ร้", "ร่"), ("ồ", "ổ"), ("ė", "e"), ("ż", "z"), ("ა", "ბ"), ("ϊ", "ι"), ("ー", "")],
)


@pytest.mark.parametrize("one,other", SAME)
def test_words_are_compared_as_people_compare_them(one: str, other: str) -> None:
    assert words(one) == words(other) and words(one)
    assert word_errors(one, other)[0] == character_errors(other, one)[0] == 0


@pytest.mark.parametrize("one,other", DIFFERENT)
def test_letters_that_differ_stay_different(one: str, other: str) -> None:
    assert words(one) != words(other)


@pytest.mark.parametrize("text", ["हिंदी दुनिया", "สวัสดี ครับ", "tiếng việt", "日本語 ー々", "한국어", "ქართული", "עברית"])
def test_words_of_a_script_stay_whole(text: str) -> None:
    assert words(text) == text.split() == words(unicodedata.normalize("NFD", text))


def english_words(text: str) -> list[str]:
    """words() of release 0.1.0 and its reports, for text in ASCII."""
    letters = (c if c.isalnum() or c == "'" else " " for c in text.lower())
    found = (word.strip("'") for word in "".join(letters).split())
    return [word for word in found if any(map(str.isalnum, word))]


def test_figures_of_english_are_as_they_were() -> None:
    texts = reading_text(toy_text(0), 0)
    texts += ["It's 5 o'clock, isn't it?", "twenty-one", "a.m.", "3.5 & 1,000", "the dogs' 'way'", "snake_case", ""]
    assert len(texts) > 500
    for text in texts:
        assert words(text) == english_words(text) and folded(text) == text.lower()


@given(st.text(st.characters(max_codepoint=127, exclude_characters="`")))
def test_any_text_in_ascii_is_as_it_was(text: str) -> None:
    assert words(text) == english_words(text)


@given(st.text())
def test_words_of_words_are_the_words(text: str) -> None:
    found = words(text)
    assert words(" ".join(found)) == found and words(text.upper().lower()) is not None
    assert all(word == word.strip("'") and any(map(str.isalnum, word)) for word in found)


def test_characters_count_where_words_cannot():
    assert character_errors("可以吗", "可以") == (1, 3)
    assert character_errors("ab cd", "abcd") == (1, 5)
    assert character_errors("", "ab") == (2, 0) and character_errors("ab", None) == (2, 2)
    assert character_error_rate(["abcd", "ef"], ["abxd", "ef"]).value == pytest.approx(1 / 6)


def test_word_error_rate_and_its_jackknife_by_hand():
    score = word_error_rate(["a b", "c d", "e f"], ["a b", "c x", "e f"])
    assert score.value == pytest.approx(1 / 6)
    # leaving one out gives 1/4, 0, 1/4: mean 1/6, squared deviations 1/144 + 1/36 + 1/144 = 1/24, times 2/3
    assert score.standard_error == pytest.approx(math.sqrt(2 / 3 / 24))
    assert score.n == 3


def test_clusters_widen_the_error():
    errors, lengths = [1, 1, 0, 0], [2, 2, 2, 2]
    alone, together = ratio(errors, lengths), ratio(errors, lengths, ["a", "a", "b", "b"])
    assert alone.value == together.value == 0.25
    assert together.standard_error == pytest.approx(0.25)  # leaving out a half gives 0 or 1/2
    assert alone.standard_error < together.standard_error
    exact = accuracy(["a", "a", "b", "b"], ["x", "x", "b", "b"], ["a", "a", "b", "b"])
    assert exact == Score(0.5, pytest.approx(0.5), 4)  # leaving out a half gives 0 or 1


def test_accuracy_and_its_binomial_error_by_hand():
    assert accuracy(["a", "b", "c", "d"], ["a", "b", "c", "x"]) == Score(
        0.75, pytest.approx(math.sqrt(0.75 * 0.25 / 4)), 4
    )


def test_a_figure_over_nothing_is_none():
    assert accuracy([], []) == Score(None, None, 0)
    assert word_error_rate([None], ["a"]) == Score(None, None, 0)
    assert accuracy([None, "", "a"], [None, None, "a"]) == Score(
        1.0, 0.0, 1
    )  # a reference without words does not count
    assert word_error_rate([None, "a"], [None, "a"]).n == 1
    assert word_error_rate(["a"], ["a"]) == Score(0.0, None, 1)
    with pytest.raises(ValueError):
        word_error_rate(["a"], [])
