"""Error rates and their standard errors against numbers worked by hand."""

from __future__ import annotations

import math

import pytest

from eval.metrics import (
    Score,
    accuracy,
    character_error_rate,
    character_errors,
    ratio,
    word_error_rate,
    word_errors,
    words,
)


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
