"""Numbers in words, in any language of num2words, read as that language writes them: 1.500 is fifteen hundred in German.

What has two readings or none (1,500 in German, 12.04.2023), and every number of a language that num2words does not
know, stays as it is written.
"""

from __future__ import annotations

import re

from num2words import num2words

# Languages that write 3,5 and 1.500; all others write 3.5 and 1,500.
COMMA = frozenset(
    "az be bg bs ca cs da de el es et eu fi fo fr gl hr hu hy id is it ka kk ky lb lt lv mk nl nn no oc pl pt ro ru sk sl sq "
    "sr sv tg tr uk uz vi wa".split()
)
SPACED = frozenset("be bg cs et fi fr hu kk lt lv nn no pl ru sk sv uk".split())  # and of these, 1 500 with a space
ORDINAL_STOP = frozenset("bs cs da de et fi fo hr hu is lb lv nn no pl sk sl sr tr".split())  # 3. is their third


def number_pattern(language: str) -> str:
    """Of a number with its separators; what follows it is for the caller to look at."""
    if language in COMMA:
        between = "[.'\u2019 ]" if language in SPACED else "[.'\u2019]"
        return rf"(?:\d{{1,3}}(?:{between}\d{{3}})+(?!\d)|\d+)(?:,\d+)?"
    return r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?"


def plain_number(number: str, language: str) -> str | None:
    """Digits and a decimal point, as Python reads them; None if it has two readings or none."""
    if language in COMMA:
        if re.fullmatch(r"\d+\.\d+", number) and not re.fullmatch(number_pattern(language), number):
            return number  # no thousands, so the point is one of another country
        if re.fullmatch(r"[1-9]\d{0,2},\d{3}", number):
            return None
        number = re.sub("[.'\u2019 ]", "", number).replace(",", ".") if _is_number(number, language) else ""
    else:
        number = number.replace(",", "") if _is_number(number, language) else ""
    return f"0{number}" if number.startswith(".") else number or None


def _is_number(number: str, language: str) -> bool:
    return bool(re.fullmatch(rf"{number_pattern(language)}|\.\d+", number))


def say(number: str, language: str, to: str = "cardinal") -> str | None:
    """A number without sign in words; digit by digit what is too large, or begins with zeros; None to leave it as it is.

    Args:
        to: cardinal, ordinal or year.
    """
    digits = plain_number(number, language)
    if digits is None:
        return None
    if not re.match(r"0\d", digits):
        try:
            return num2words(float(digits) if "." in digits else int(digits), lang=language, to=to) or None
        except (NotImplementedError, LookupError, TypeError):  # a language, or a form, that it does not have
            return None
        except (ArithmeticError, ValueError):  # too large
            pass
    said = [say(digit, language) for digit in re.sub(r"\D", "", number)] if len(digits) > 1 else [None]
    return None if None in said else " ".join(map(str, said))


def say_numbers(text: str, language: str, joins: dict[str, str]) -> str:
    """A text with its numbers in words, negative ones too; a number that touches a letter stays as it is.

    Args:
        joins: how signs between digits that make no number are said, as in 1.2.3; without them all of it stays.
    """
    spaced = f"{number_pattern(language)}|" if language in SPACED else ""
    ordinal = r"(?!(?<!\d\d\d)\.\s+\w)" if language in ORDINAL_STOP else ""

    def said(found: re.Match) -> str:
        words = say(found[2], language)
        if words is None and joins and found[2][0].isdigit():
            parts = re.split(r"(\D)", found[2])
            words = "".join(
                joins.get(part, part) if i % 2 else say(part, language) or part for i, part in enumerate(parts)
            )
        minus = _minus(language) if found[1] else ""
        return found[0] if words is None or minus is None else minus + words

    token = rf"(?<!\w)([-\u2212]?)({spaced}(?<![.\w])\.\d+|\d+(?:[.,:/'\u2019]\d+)*)(?![.,:/'\u2019]?\d|\w){ordinal}"
    return re.sub(token, said, text)


def _minus(language: str) -> str | None:
    """The word before a negative number, with the space that some languages do not write; None if the library lacks it."""
    try:
        negative, positive = num2words(-5, lang=language), num2words(5, lang=language)
    except (NotImplementedError, LookupError, TypeError, ValueError):
        return None
    return negative.removesuffix(positive) if negative != positive and negative.endswith(positive) else None
