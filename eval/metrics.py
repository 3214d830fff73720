"""Word error rate and exact match, each with its standard error.

word_error_rate(["two plus two"], ["two plus you"])      # Score(value=0.333, standard_error=None, n=1)
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

_NOT_A_WORD = re.compile(r"[^\w' ]+")


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
    """Lower-case words without punctuation; None, a missing part, has none.

    Number words stay words: the English normaliser of Whisper writes "one two three" as 123, one word for three.
    """
    return _NOT_A_WORD.sub(" ", (text or "").lower().replace("_", " ")).split()


def word_errors(reference: str | None, heard: str | None) -> tuple[int, int]:
    """(substitutions + deletions + insertions, words of the reference) of one sentence, by jiwer's alignment."""
    import jiwer

    spoken, got = words(reference), words(heard)
    if not spoken or not got:  # jiwer refuses an empty reference
        return max(len(spoken), len(got)), len(spoken)
    found = jiwer.process_words(" ".join(spoken), " ".join(got))
    return found.substitutions + found.deletions + found.insertions, len(spoken)


def word_error_rate(
    references: Sequence[str | None], heard: Sequence[str | None], clusters: Sequence[Hashable] | None = None
) -> Score:
    """Errors over reference words, of the whole set.

    Args:
        references: what was said. heard: what was understood, in the same order.
        clusters: utterances that are not independent, such as those of one speaker, share one; default each its own.

    Raises: ValueError if the lengths differ.
    """
    counts = [word_errors(*pair) for pair in zip(references, heard, strict=True)]
    return ratio([errors for errors, _ in counts], [spoken for _, spoken in counts], clusters)


def ratio(tops: Sequence[float], bottoms: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Score:
    """sum(tops) / sum(bottoms), with the jackknife's standard error, leaving out one cluster at a time.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), equation 11.5.

    Raises: ValueError if the lengths differ.
    """
    groups: dict[Hashable, list[float]] = {}
    for top, bottom, cluster in zip(tops, bottoms, range(len(tops)) if clusters is None else clusters, strict=True):
        group = groups.setdefault(cluster, [0.0, 0.0])
        group[0] += top
        group[1] += bottom
    top, bottom = float(sum(tops)), float(sum(bottoms))
    value = top / bottom if bottom else None
    rest = [(top - a, bottom - b) for a, b in groups.values()]
    if value is None or len(rest) < 2 or not all(b > 0 for _, b in rest):
        return Score(value, None, len(tops))
    without = [a / b for a, b in rest]
    mean = sum(without) / len(without)
    variance = (len(without) - 1) / len(without) * sum((v - mean) ** 2 for v in without)
    return Score(value, math.sqrt(variance), len(tops))


def accuracy(references: Sequence[str | None], given: Sequence[str | None]) -> Score:
    """Share of examples whose words are exactly the reference's, with the binomial standard error.

    Raises: ValueError if the lengths differ.
    """
    right = [words(reference) == words(text) for reference, text in zip(references, given, strict=True)]
    if not right:
        return Score(None, None, 0)
    share = sum(right) / len(right)
    return Score(share, math.sqrt(share * (1 - share) / len(right)), len(right))
