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
    """The words of a text as people compare them: without case, punctuation, width, and marks that carry no sound.

    None (a missing part) has no words. Letters are folded by folded(). Number words stay words; the English normaliser
    of Whisper would write "one two three" as 123, one word for three.
    """
    found = (word.strip("'") for word in "".join(map(_letter, folded(text or ""))).split())
    return [word for word in found if any(map(str.isalnum, word))]


# The apostrophe as keyboards and scripts write it: quotes, modifier letters, primes, accents that stand alone.
APOSTROPHES = dict.fromkeys(map(ord, "\u2018\u2019\u201b\u02bc\u02bb\u02b9\u2032\uff07\ua78c\u055a\u05f3`\u00b4"), "'")
SIGNS = dict.fromkeys(map(ord, "\u2122\u2120"), " ")  # "TM" and "SM" would be letters of the word before
# Vowel points of scripts that write their vowels or not: the same sentence is right with and without them, and Arabic
# recognisers are compared without them (Wang et al. 2024, arXiv 2412.13788). Hamza and madda belong to their letters.
VOWEL_POINTS = (
    *((0x0610, 0x061A), (0x064B, 0x0652), (0x0656, 0x065F), (0x0670, 0x0670), (0x06D6, 0x06ED)),  # Arabic
    *((0x0591, 0x05BD), (0x05BF, 0x05BF), (0x05C1, 0x05C2), (0x05C4, 0x05C5), (0x05C7, 0x05C7)),  # Hebrew
    (0x0730, 0x074A),  # Syriac
)
TATWEEL = "\u0640"  # lengthens a line of Arabic, and counts as a letter
INVISIBLE_MARKS = ((0x034F, 0x034F), (0x180B, 0x180D), (0xFE00, 0xFE0F), (0xE0100, 0xE01EF))  # variation selectors
STRESS = "\u0300\u0301\u0342"  # accents that capitals of Greek lack, and that Cyrillic has in dictionaries only


def folded(text: str) -> str:
    """One text for all ways to write it: case, width, ligatures, apostrophes, digits, marks without a sound.

    Example: "İstanbul ＡＢＣ ﬁne straße كتـــاب" -> "istanbul abc fine strasse كتاب"

    Case is folded for every language at once, so what capitals do not tell apart is one: dotted and dotless i of
    Turkish, ss and ß, the accents of Greek.
    """
    if text.isascii():
        return text.lower().replace("`", "'")
    spaced = "".join(f" {c}" if unicodedata.decomposition(c).startswith("<fraction>") else c for c in text)  # 3½
    lower = unicodedata.normalize("NFKC", spaced.translate(APOSTROPHES | SIGNS)).casefold().replace("\u0131", "i")
    kept: list[str] = []
    base = " "  # the letter that a mark belongs to
    for character in unicodedata.normalize("NFD", lower):
        if not unicodedata.combining(character) and unicodedata.category(character)[0] != "M":
            base = character
        elif not _has_sound(character, base):
            continue
        kept.append(character)
    return unicodedata.normalize("NFC", "".join(kept))


def _has_sound(mark: str, base: str) -> bool:
    """Whether a mark changes how its letter sounds, or which letter it is."""
    code = ord(mark)
    if not base.isalnum() or unicodedata.category(mark) == "Me":  # a circle or keycap around a letter
        return False
    if any(first <= code <= last for first, last in VOWEL_POINTS + INVISIBLE_MARKS):
        return False
    if mark in STRESS and unicodedata.name(base, "").startswith(("GREEK", "CYRILLIC")):
        # ѓ and ќ of Macedonian are letters of their own
        return base in "\u0433\u043a"
    return not (mark == "\u0307" and base == "i")


def _letter(character: str) -> str:
    """A folded character as words() sees it: itself, an ASCII digit, a space, or "" for an invisible one."""
    kind = unicodedata.category(character)
    if kind == "Nd":
        return str(unicodedata.digit(character))
    if character.isalnum() or character == "'" or kind[0] == "M":  # marks, such as the vowels of Hindi
        return "" if character == TATWEEL else character
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
