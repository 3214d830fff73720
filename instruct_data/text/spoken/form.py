"""Text as it is spoken: numbers, money, dates, times, units, signs and abbreviations written out as words.

Numbers are written out in every language of num2words (`spoken_numbers.py`). The words around them are written out for
the languages in WORDS (`spoken_words.py`), so far English, and dates and sums for English (`spoken_english.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from instruct_data.text.spoken import english as spoken_english
from instruct_data.text.spoken.english import apply_rules
from instruct_data.text.spoken.numbers import number_pattern, number_words, write_out_numbers
from instruct_data.text.spoken.words import WORDS, Words

_EMPHASIS = r"(?<!\w)(\*{1,3}|_{1,3}|`)(?=\S)([^\n]{1,500}?)(?<=\S)\1(?!\w)"  # of Markdown
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u2060\ufeff]")


def tidy(text: str) -> str:
    """A text with one kind of space and one kind of line end, and without invisible characters."""
    text = re.sub(r"(?<=\d)[\u00a0\u2007\u2009\u202f](?=\d{3}(?!\d))", "", text)  # a thin space between thousands
    text = re.sub("\r\n?|[\x85\u2028\u2029]", "\n", _INVISIBLE.sub("", text))
    text = re.sub("[\u2010\u2011]", "-", text)
    return re.sub("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]", " ", text)


def speakable(text: str, language: str | None = "en") -> str:
    """A text as a reader would speak it.

    Args:
        language: ISO 639-1. For a language without an entry in WORDS, only numbers are written out. None, for an
            unknown language: words and numbers stay as they are.

    Example:
        "Dr. Wu ran 5 km on May 3, 1999 for $2.50." ->
        "Doctor Wu ran five kilometers on May third, nineteen ninety-nine for two dollars, fifty cents."
    """
    words = WORDS.get(language or "", Words())
    english = language == "en"
    text = re.sub(r"[ \t]+", " ", tidy(text))
    text = re.sub(_EMPHASIS, r"\2", text)
    text = apply_rules(text, spoken_english.NAMES if english else [])
    text = _write_out_abbreviations(text, words)
    text = apply_rules(text, spoken_english.DATES_AND_SUMS if english else [])
    text = _write_out_money(text, words, language or "")
    text = _write_out_units(text, words, language or "")
    text = apply_rules(text, spoken_english.YEARS if english else [])
    if language:
        text = write_out_numbers(text, language, words.joins)
    for sign, word in words.signs.items():
        text = re.sub(rf" ?{re.escape(sign)} ?", f" {word} ", text)
    return re.sub(r" ([.,])(?!\w)", r"\1", re.sub(r"[ \t]+", " ", text)).strip()


def _alternatives(names: Iterable[str]) -> str:
    """A pattern for any of some names, the longest first."""
    return "|".join(map(re.escape, sorted(names, key=len, reverse=True)))


def _write_out_abbreviations(text: str, words: Words) -> str:
    """Replace abbreviations; the full stop stays where it ends the sentence too."""
    if not words.abbreviations:
        return text

    def spoken(found: re.Match) -> str:
        ends = found[2] is not None or (found[3] is not None and found[1] in words.endings)
        return words.abbreviations[found[1]] + "." * ends

    known = "|".join(map(re.escape, words.abbreviations))
    return re.sub(rf"(?<!\w)({known})(?!\w)(?=([^\S\n]*(?:\n|\Z))?)(?=(\s+[A-Z])?)", spoken, text)


def _write_out_money(text: str, words: Words, language: str) -> str:
    if not words.money:
        return text

    def spoken(found: re.Match) -> str:
        return "minus " * bool(found[1]) + _money(found[3], found[4], words.money[found[2]], words, language)

    signs, number, scales = _alternatives(words.money), number_pattern(language), _alternatives(words.scales)
    scale = rf"(?:\s?((?i:{scales}))\b)?"
    return re.sub(rf"(?<!\w)([-\u2212]?)(?:US)?({signs})\s?({number}){scale}(?![.,]?\d|\w)", spoken, text)


def _money(amount: str, scale: str | None, names: tuple[str, str, str, str], words: Words, language: str) -> str:
    """An amount of money in words, such as `two dollars, fifty cents`."""
    one, many, cent, cents = names
    whole, _, part = amount.partition(".")
    if scale:
        return f"{number_words(amount, language)} {words.scales[scale.lower()]} {many}"
    if len(part) > 2:
        return f"{number_words(amount, language)} {many}"
    hundredths = int(part.ljust(2, "0"))
    parts = []
    if whole.strip("0,") or not hundredths:
        parts.append(f"{number_words(whole, language)} {one if whole == '1' else many}")
    if hundredths:
        parts.append(f"{number_words(str(hundredths), language)} {cent if hundredths == 1 else cents}")
    return ", ".join(parts)


def _write_out_units(text: str, words: Words, language: str) -> str:
    if not words.units:
        return text

    def spoken(found: re.Match) -> str:
        name = words.units[found[3]][found[2] != "1"]
        return f"{'minus ' * bool(found[1])}{number_words(found[2], language)} {name}"

    names = _alternatives(words.units)
    return re.sub(rf"(?<![\w.,])([-\u2212]?)({number_pattern(language)})\s?({names})(?!\w)", spoken, text)
