"""Numbers as words, in every language of num2words, read as that language writes them: 1.500 is 1500 in German.

A number stays as it is written if it has two readings or none (1,500 in German, 12.04.2023), or if num2words does not
know the language.
"""

from __future__ import annotations

import re
from typing import Any

from units.runtime.extras import required

# Languages that write 3,5 and 1.500; all others write 3.5 and 1,500.
COMMA = frozenset(
    "az be bg bs ca cs da de el es et eu fi fo fr gl hr hu hy id is it ka kk ky lb lt lv mk nl nn no oc pl pt ro ru sk "
    "sl sq sr sv tg tr uk uz vi wa".split()
)
SPACED = frozenset("be bg cs et fi fr hu kk lt lv nn no pl ru sk sv uk".split())  # of these, languages that write 1 500
ORDINAL_STOP = frozenset("bs cs da de et fi fo hr hu is lb lv nn no pl sk sl sr tr".split())  # 3. is their "third"
UNSUPPORTED = (NotImplementedError, LookupError, TypeError)  # num2words lacks the language, or the form in it


def _num2words(number: int | float, language: str, form: str = "cardinal") -> Any:
    return required("num2words").num2words(number, lang=language, to=form)


def number_pattern(language: str) -> str:
    """A pattern for a number with its separators; the caller checks what follows it."""
    if language in COMMA:
        between = "[.'\u2019 ]" if language in SPACED else "[.'\u2019]"
        return rf"(?:\d{{1,3}}(?:{between}\d{{3}})+(?!\d)|\d+)(?:,\d+)?"
    return r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?"


def plain_number(number: str, language: str) -> str | None:
    """A number as Python writes it: digits and a decimal point. None if it has two readings or none."""
    if language in COMMA:
        if re.fullmatch(r"\d+\.\d+", number) and not re.fullmatch(number_pattern(language), number):
            return number  # the point separates no thousands, so it is another language's decimal point
        if re.fullmatch(r"[1-9]\d{0,2},\d{3}", number):
            return None
        number = re.sub("[.'\u2019 ]", "", number).replace(",", ".") if _is_number(number, language) else ""
    else:
        number = number.replace(",", "") if _is_number(number, language) else ""
    return f"0{number}" if number.startswith(".") else number or None


def _is_number(number: str, language: str) -> bool:
    return bool(re.fullmatch(rf"{number_pattern(language)}|\.\d+", number))


def number_words(number: str, language: str, form: str = "cardinal") -> str | None:
    """A number without a sign, in words; None if it must stay as it is written.

    A number that is too large for num2words, or begins with zeros, is spoken digit by digit.

    Args:
        form: cardinal, ordinal or year.
    """
    digits = plain_number(number, language)
    if digits is None:
        return None
    if not re.match(r"0\d", digits):
        try:
            return _num2words(float(digits) if "." in digits else int(digits), language, form) or None
        except UNSUPPORTED:
            return None
        except (ArithmeticError, ValueError):  # too large
            pass
    if len(digits) == 1:
        return None
    words = [number_words(digit, language) for digit in re.sub(r"\D", "", number)]
    return None if None in words else " ".join(map(str, words))


def write_out_numbers(text: str, language: str, joins: dict[str, str]) -> str:
    """A text with its numbers in words, negative ones too. A number that touches a letter stays as it is.

    Args:
        joins: the words of signs between digits that form no number, as in 1.2.3; if empty, such digits stay.
    """
    spaced = f"{number_pattern(language)}|" if language in SPACED else ""
    ordinal = r"(?!(?<!\d\d\d)\.\s+\w)" if language in ORDINAL_STOP else ""

    def spoken(found: re.Match) -> str:
        words = number_words(found[2], language)
        if words is None and joins and found[2][0].isdigit():
            parts = re.split(r"(\D)", found[2])
            words = "".join(
                joins.get(part, part) if i % 2 else number_words(part, language) or part for i, part in enumerate(parts)
            )
        minus = _minus(language) if found[1] else ""
        return found[0] if words is None or minus is None else minus + words

    token = rf"(?<!\w)([-\u2212]?)({spaced}(?<![.\w])\.\d+|\d+(?:[.,:/'\u2019]\d+)*)(?![.,:/'\u2019]?\d|\w){ordinal}"
    return re.sub(token, spoken, text)


def _minus(language: str) -> str | None:
    """The word before a negative number, with its space where the language writes one; None if num2words has none."""
    try:
        negative, positive = _num2words(-5, language), _num2words(5, language)
    except (*UNSUPPORTED, ValueError):
        return None
    return negative.removesuffix(positive) if negative != positive and negative.endswith(positive) else None
