"""Word and character error rates and exact match, each with its standard error.

word_error_rate(["two plus two"], ["two plus you"])      # Score(value=0.333, standard_error=None, n=1)
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Score:
    """A figure over n examples.

    value: None when it is undefined, such as an error rate over no words.
    standard_error: None when it is unknown, as from a single example.
    """

    value: float | None
    standard_error: float | None
    n: int


def words(text: str | None) -> list[str]:
    """Lower-case words without punctuation. None (a missing part) has no words.

    Unicode is composed (NFC), all apostrophes become one, and vowel signs stay with their letters. Number words stay
    words; the English normaliser of Whisper would write "one two three" as 123, one word for three.
    """
    composed = unicodedata.normalize("NFC", (text or "").lower())
    found = (word.strip("'") for word in "".join(map(_letter, composed)).split())
    return [word for word in found if any(map(str.isalnum, word))]


def _letter(character: str) -> str:
    """A character as words() sees it: itself, an apostrophe, a space, or "" for an invisible one."""
    if character in "'\u2019\u02bc":
        return "'"
    kind = unicodedata.category(character)
    if character.isalnum() or kind[0] == "M":  # marks, such as the vowels of Hindi
        return character
    return "" if kind == "Cf" else " "  # joiners and soft hyphens occur inside words


def word_errors(reference: str | None, given: str | None) -> tuple[int, int]:
    """(substitutions + deletions + insertions, words of the reference) of one sentence, by jiwer's alignment."""
    import jiwer

    expected, got = words(reference), words(given)
    if not expected or not got:  # jiwer refuses an empty reference
        return max(len(expected), len(got)), len(expected)
    found = jiwer.process_words(" ".join(expected), " ".join(got))
    return found.substitutions + found.deletions + found.insertions, len(expected)


def character_errors(reference: str | None, given: str | None) -> tuple[int, int]:
    """As word_errors, for the characters of the words and the spaces between them."""
    import jiwer

    expected, got = " ".join(words(reference)), " ".join(words(given))
    if not expected or not got:
        return max(len(expected), len(got)), len(expected)
    found = jiwer.process_characters(expected, got)
    return found.substitutions + found.deletions + found.insertions, len(expected)


def word_error_rate(
    references: Sequence[str | None], given: Sequence[str | None], clusters: Sequence[Hashable] | None = None
) -> Score:
    """Errors divided by reference words, over the whole set. n counts the references that have words.

    Args:
        references: the right texts.
        given: transcripts or answers, in the same order.
        clusters: a label per utterance; utterances that are not independent share one. Default: all are independent.

    Raises: ValueError if the lengths differ.
    """
    return _error_rate(word_errors, references, given, clusters)


def character_error_rate(
    references: Sequence[str | None], given: Sequence[str | None], clusters: Sequence[Hashable] | None = None
) -> Score:
    """As word_error_rate, for characters: for languages that write no spaces between words."""
    return _error_rate(character_errors, references, given, clusters)


def _error_rate(errors_of: Callable, references: Sequence, given: Sequence, clusters: Sequence | None) -> Score:
    counts = [errors_of(*pair) for pair in zip(references, given, strict=True)]
    score = ratio([errors for errors, _ in counts], [expected for _, expected in counts], clusters)
    return replace(score, n=sum(expected > 0 for _, expected in counts))


def ratio(
    numerators: Sequence[float], denominators: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> Score:
    """sum(numerators) / sum(denominators), with the standard error of the jackknife over clusters.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), equation 11.5.

    Raises: ValueError if the lengths differ.
    """
    groups: dict[Hashable, list[float]] = {}
    labels = range(len(numerators)) if clusters is None else clusters
    for top, bottom, cluster in zip(numerators, denominators, labels, strict=True):
        group = groups.setdefault(cluster, [0.0, 0.0])
        group[0] += top
        group[1] += bottom
    top, bottom = float(sum(numerators)), float(sum(denominators))
    value = top / bottom if bottom else None
    rest = [(top - a, bottom - b) for a, b in groups.values()]
    if value is None or len(rest) < 2 or not all(b > 0 for _, b in rest):
        return Score(value, None, len(numerators))
    without = [a / b for a, b in rest]
    mean = sum(without) / len(without)
    variance = (len(without) - 1) / len(without) * sum((v - mean) ** 2 for v in without)
    return Score(value, math.sqrt(variance), len(numerators))


def accuracy(
    references: Sequence[str | None], given: Sequence[str | None], clusters: Sequence[Hashable] | None = None
) -> Score:
    """Share of examples whose words equal the reference's, among those whose reference has words.

    Args:
        references: the right texts.
        given: transcripts or answers, in the same order.
        clusters: as in word_error_rate. The standard error is binomial without clusters, and the jackknife's with them.

    Raises: ValueError if the lengths differ.
    """
    labels = range(len(references)) if clusters is None else clusters
    found = [
        (words(reference) == words(text), label)
        for reference, text, label in zip(references, given, labels, strict=True)
        if words(reference)
    ]
    if not found:
        return Score(None, None, 0)
    hits, kept = zip(*found)
    if clusters is not None:
        return ratio(hits, [1] * len(hits), kept)
    share = sum(hits) / len(hits)
    return Score(share, math.sqrt(share * (1 - share) / len(hits)), len(hits))
