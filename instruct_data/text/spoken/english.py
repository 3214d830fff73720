"""English rules for numbers whose context decides how they are spoken: dates, times, ranges, sums, fractions, decades.

A rule is a pattern and a function from its match to the spoken words. Rules apply in their order. A date that has two
readings (12/04/2023) is read as an American would read it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from instruct_data.text.spoken.numbers import number_pattern, number_words

Rules = list[tuple[str, Callable[[re.Match], str]]]

MONTHS = "January February March April May June July August September October November December".split()
_MONTH = "|".join(f"{month}|{month[:3]}\\.?" for month in MONTHS)
_YEAR = r"(?:1[1-9]\d\d|20\d\d)"
_DECIMAL = r"\d+(?:[.,]\d+)*"
_SUM = rf"(?<![\w.,]){_DECIMAL}(?:(?:\s?[-\u2013\u2212+*\u00d7\u00f7=]\s?|\s[x/]\s){_DECIMAL})+(?:\s?=)?"
_SIGNS = {
    "+": "plus",
    "*": "times",
    "\u00d7": "times",
    "x": "times",
    "/": "divided by",
    "\u00f7": "divided by",
    "=": "equals",
}
# Four digits that may be a year, unless they are an amount or a term of a sum.
_LONE_YEAR = (
    r"(?<![\d.,$\u20ac\u00a3=+])(?<![=+] )(?<!plus )(?<!minus )(?<!times )(?<!divided by )(?<!equals )"
    rf"\b{_YEAR}\b(?![.,:/]?\d|\s?[%=+]| (?:plus|minus|times|divided by|equals) )"
)


def apply_rules(text: str, rules: Rules) -> str:
    """A text with each rule's matches replaced, rule by rule."""
    for pattern, spoken in rules:
        text = re.sub(pattern, spoken, text)
    return text


def _number(digits: str, form: str = "cardinal") -> str:
    return number_words(digits, "en", form) or digits


def _street_after_name(found: re.Match) -> str:
    return f"{found[1]} Street" + "." * (found[2] is not None)


def _street(found: re.Match) -> str:
    return "Street" + "." * (found[1] is not None)


def _month(name: str) -> str:
    return next(month for month in MONTHS if month.startswith(name[:3].capitalize()))


def _numeric_date(found: re.Match, year: str, month: str, day: str) -> str:
    if not (1 <= int(month) <= 12 and 1 <= int(day) <= 31):
        return found[0]
    return f"{MONTHS[int(month) - 1]} {_number(str(int(day)), 'ordinal')}, {_number(year, 'year')}"


def _month_and_day(found: re.Match) -> str:
    year = f", {_number(found[3], 'year')}" if found[3] else ""
    return f"{_month(found[1])} {_number(found[2], 'ordinal')}{year}"


def _day_and_month(found: re.Match) -> str:
    return f"the {_number(found[1], 'ordinal')} of {_month(found[2])}, {_number(found[3], 'year')}"


def _clock(found: re.Match) -> str:
    hour, minute = _number(found[1]), int(found[2])
    half = f" {found[3].lower()} m" if found[3] else ""
    if minute == 0:
        return hour + (half or " o'clock")
    return f"{hour} {'oh ' if minute < 10 else ''}{_number(str(minute))}{half}"


def _digit_groups(found: re.Match) -> str:
    """A telephone number, digit by digit."""
    return ", ".join(" ".join(map(_number, group)) for group in found[0].split("-"))


def _sum(found: re.Match) -> str:
    """A sum, in which a dash is `minus`, or a range, in which a dash between digits is `to`."""
    is_sum = re.search(r"[=+*\u00d7\u00f7\u2212]|\s[x/]\s", found[0])

    def sign(one: re.Match) -> str:
        dash = "minus" if is_sum or one[1].strip() != one[1] else "to"
        return f" {_SIGNS.get(one[1].strip(), dash)} "

    return re.sub(r"(?<=\d)(\s?[-\u2013\u2212+*\u00d7\u00f7=x/]\s?)", sign, found[0]).rstrip()


def _fraction(found: re.Match) -> str:
    above, below = int(found[1]), int(found[2])
    part = {2: "half", 4: "quarter"}.get(below) or _number(str(below), "ordinal")
    parts = "halves" if below == 2 else f"{part}s"
    return f"{_number(str(above))} {part if above == 1 else parts}"


def _decade(year: str) -> str:
    words = _number(year, "year")
    return words[:-1] + "ies" if words.endswith("y") else words + "s"


_CAPITALISED = r"(?!Mount |Fort |Port |East |Lake )(?:[A-Z][a-z]+|\d+(?:st|nd|rd|th))"

NAMES: Rules = [
    # abbreviations that only their neighbours explain
    (r"\bNo\.\s*(?=\d)", lambda m: "number "),
    (r"(?<!\w)#(?=\d)", lambda m: "number "),
    (rf"((?:[a-z\d],? ){_CAPITALISED}) St\.(?!\w)(?=(\s+[A-Z]|\s*\Z)?)", _street_after_name),
    (r"\bSt\.(?!\w|\s+[A-Z])(?=(\s*\Z)?)", _street),
]

DATES_AND_SUMS: Rules = [
    (r"\b(\d{4})-(\d\d)-(\d\d)\b", lambda m: _numeric_date(m, m[1], m[2], m[3])),
    (r"\b(\d\d?)/(\d\d?)/(\d{4})\b", lambda m: _numeric_date(m, m[3], m[1], m[2])),
    (r"(?<![\w-])\d+(?:-\d+){2,}(?![\w-]|\s?[=+*])", _digit_groups),
    (rf"([$\u20ac\u00a3])({number_pattern('en')})\s?[\u2013-]\s?\1?(?=\d)", lambda m: f"{m[2]} to {m[1]}"),
    (rf"\b({_YEAR})\s?[\u2013-]\s?({_YEAR})\b(?!\s?=)", lambda m: f"{m[1]} to {m[2]}"),
    (_SUM, _sum),
    (rf"\b({_MONTH})\s+(\d\d?)(?:st|nd|rd|th)?(?:,?\s+(\d{{4}}))?\b", _month_and_day),
    (rf"\b(\d\d?)(?:st|nd|rd|th)?\s+({_MONTH})\s+(\d{{4}})\b", _day_and_month),
    (r"(?<![\w:.,])([01]?\d|2[0-3]):([0-5]\d)(?![\d:])(?:\s?([apAP])\s?[mM]\b)?(?!\w)", _clock),
    (r"(?<![\w:.,])(1[0-2]|[1-9])\s?([apAP])\s?[mM]\b", lambda m: f"{_number(m[1])} {m[2].lower()} m"),
    (r"(?<![\w/.,])([1-9])/([2-9])\b(?!/)", _fraction),
    (r"\b(1[1-9]\d|20\d)0['\u2019]?s\b", lambda m: _decade(m[0][:4])),
    (
        r"\b((?i:the|his|her|their|my|your|our|early|mid|late)[\s-])['\u2019]?([2-9]0)s\b"
        r"|(?<!\w)['\u2019]([2-9]0)s\b",
        lambda m: (m[1] or "") + _decade(m[2] or m[3]),
    ),
    (r"\b(\d+)(?:st|nd|rd|th)\b", lambda m: _number(m[1], "ordinal")),
]

YEARS: Rules = [(_LONE_YEAR, lambda m: _number(m[0], "year"))]
