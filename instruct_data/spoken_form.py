"""Text as it is spoken: numbers, money, dates, times, units, signs and abbreviations written out.

Numbers are num2words' work, in any of its languages; the words around them are English here, and of other languages as
far as WORDS has them. What is ambiguous (12/04/2023) is read as an American would.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from num2words import num2words

MONTHS = "January February March April May June July August September October November December".split()
_MONTH = "|".join(f"{month}|{month[:3]}\\.?" for month in MONTHS)


@dataclass(frozen=True)
class Words:
    """The words of a language. units: after a number, singular and plural. money: codes of num2words."""

    units: dict[str, tuple[str, str]] = field(default_factory=dict)
    abbreviations: dict[str, str] = field(default_factory=dict)
    signs: dict[str, str] = field(default_factory=dict)
    money: dict[str, str] = field(default_factory=dict)
    point: str = ""


ENGLISH = Words(
    units={
        "km/h": ("kilometer per hour", "kilometers per hour"), "mph": ("mile per hour", "miles per hour"),
        "km": ("kilometer", "kilometers"), "cm": ("centimeter", "centimeters"), "mm": ("millimeter", "millimeters"),
        "m": ("meter", "meters"), "ft": ("foot", "feet"), "mi": ("mile", "miles"), "kg": ("kilogram", "kilograms"),
        "mg": ("milligram", "milligrams"), "g": ("gram", "grams"), "lb": ("pound", "pounds"), "lbs": ("pound", "pounds"),
        "oz": ("ounce", "ounces"), "ml": ("milliliter", "milliliters"), "L": ("liter", "liters"),
        "ms": ("millisecond", "milliseconds"), "s": ("second", "seconds"), "min": ("minute", "minutes"),
        "h": ("hour", "hours"), "hrs": ("hour", "hours"), "kHz": ("kilohertz", "kilohertz"), "Hz": ("hertz", "hertz"),
        "GB": ("gigabyte", "gigabytes"), "MB": ("megabyte", "megabytes"), "KB": ("kilobyte", "kilobytes"),
        "W": ("watt", "watts"), "kW": ("kilowatt", "kilowatts"), "%": ("percent", "percent"),
        "\u00b0C": ("degree Celsius", "degrees Celsius"), "\u00b0F": ("degree Fahrenheit", "degrees Fahrenheit"),
        "\u00b0": ("degree", "degrees"),
    },
    abbreviations={
        "Dr.": "Doctor", "Mr.": "Mister", "Mrs.": "Missus", "Ms.": "Miss", "Prof.": "Professor", "St.": "Saint",
        "e.g.": "for example", "i.e.": "that is", "etc.": "et cetera", "vs.": "versus", "approx.": "approximately",
        "No.": "number", "Jr.": "Junior", "Sr.": "Senior", "a.m.": "a m", "p.m.": "p m", "U.S.": "U S", "U.K.": "U K",
    },
    signs={"&": "and", "+": "plus", "=": "equals", "@": "at", "\u00d7": "times", "\u00f7": "divided by", "#": "number"},
    money={"$": "USD", "\u20ac": "EUR", "\u00a3": "GBP"},
    point="point",
)  # fmt: skip
WORDS: dict[str, Words] = {"en": ENGLISH}

_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"


def speakable(text: str, language: str = "en") -> str:
    """A text as somebody would read it out.

    Args:
        language: ISO 639-1; of another than English, numbers are written out, and whatever WORDS knows.

    Example: "Dr. Wu ran 5 km on May 3, 1999 for $2.50." ->
        "Doctor Wu ran five kilometers on May third, nineteen ninety-nine for two dollars, fifty cents."
    """
    words = WORDS.get(language, Words())
    text = re.sub(r"(?<!\w)(\*{1,3}|_{1,3}|`)(?=\S)([^\n]+?)(?<=\S)\1(?!\w)", r"\2", text)  # emphasis of mark-down
    if words.abbreviations:
        known = "|".join(map(re.escape, words.abbreviations))
        text = re.sub(rf"(?<!\w)(?:{known})(?!\w)", lambda found: words.abbreviations[found[0]], text)
    if language == "en":
        text = _english_dates(text)
    text = _amounts(text, words, language)
    for sign, word in words.signs.items():
        text = re.sub(rf"\s*{re.escape(sign)}\s*", f" {word} ", text)
    return re.sub(r"[ \t]+", " ", text).replace(" .", ".").replace(" ,", ",").strip()


def _in_words(value: float, language: str, to: str, **more: str) -> str | None:
    """num2words of a number; None where it has no words for it. It says so by NotImplementedError for a language or a
    currency that it does not know, by the others for a number that is too large."""
    try:
        return num2words(value, lang=language, to=to, **more)
    except (NotImplementedError, ArithmeticError, ValueError):
        return None


def _say(number: str, language: str, to: str = "cardinal") -> str:
    """In words; digit by digit where the library has no words for it."""
    digits = number.replace(",", "")
    said = _in_words(float(digits) if "." in digits else int(digits), language, to)
    if said is None:
        return digits if len(digits) == 1 else " ".join(_say(digit, language) for digit in digits)
    return said


def _english_dates(text: str) -> str:
    def ordinal(day: str) -> str:
        return _say(day, "en", "ordinal")

    def year(number: str) -> str:
        return _say(number, "en", "year")

    def month_of(name: str) -> str:
        return next(month for month in MONTHS if month.startswith(name[:3].capitalize()))

    def clock(found: re.Match) -> str:
        hour, minute = _say(found[1], "en"), int(found[2])
        if minute == 0:
            return hour if found[3] else f"{hour} o'clock"
        return f"{hour} {'oh ' if minute < 10 else ''}{_say(found[2], 'en')}"

    def numeric(found: re.Match, year_at: int, month_at: int, day_at: int) -> str:
        month, day = int(found[month_at]), int(found[day_at])
        if not (1 <= month <= 12 and 1 <= day <= 31):
            return found[0]
        return f"{MONTHS[month - 1]} {ordinal(found[day_at])}, {year(found[year_at])}"

    rules: list[tuple[str, Callable[[re.Match], str]]] = [
        (r"\b(\d{4})-(\d\d)-(\d\d)\b", lambda m: numeric(m, 1, 2, 3)),
        (r"\b(\d\d?)/(\d\d?)/(\d{4})\b", lambda m: numeric(m, 3, 1, 2)),
        (rf"\b({_MONTH})\s+(\d\d?)(?:st|nd|rd|th)?(?:,?\s+(\d{{4}}))?\b",
         lambda m: f"{month_of(m[1])} {ordinal(m[2])}" + (f", {year(m[3])}" if m[3] else "")),
        (rf"\b(\d\d?)(?:st|nd|rd|th)?\s+({_MONTH})\s+(\d{{4}})\b",
         lambda m: f"the {ordinal(m[1])} of {month_of(m[2])}, {year(m[3])}"),
        (r"\b([01]?\d|2[0-3]):([0-5]\d)\b(\s*[ap]\.?\s?m\b)?", lambda m: clock(m) + (m[3] or "")),
        (r"\b(1[0-2]|[1-9])\s?([ap])\.?m\b\.?", lambda m: f"{_say(m[1], 'en')} {m[2]} m"),
        (r"(?<=\d)\s?[\u2013-]\s?(?=\d)", lambda m: " to "),
        (r"\b([1-9])/([2-9])\b(?!/)", lambda m: _fraction(int(m[1]), int(m[2]))),
        (r"\b(1[1-9]|20)\d\ds\b", lambda m: _decade(m[0][:-1])),
        (r"\b(\d+)(?:st|nd|rd|th)\b", lambda m: ordinal(m[1])),
        (r"(?<![\d.,$\u20ac\u00a3])\b(?:1[1-9]\d\d|20\d\d)\b(?![\d.,]*\d|\s?%)", lambda m: year(m[0])),
    ]  # fmt: skip
    for pattern, spoken in rules:
        text = re.sub(pattern, spoken, text)
    return text


def _fraction(above: int, below: int) -> str:
    part = {2: "half", 4: "quarter"}.get(below) or _say(str(below), "en", "ordinal")
    parts = "halves" if below == 2 else f"{part}s"
    return f"{_say(str(above), 'en')} {part if above == 1 else parts}"


def _decade(year: str) -> str:
    said = _say(year, "en", "year")
    return said[:-1] + "ies" if said.endswith("y") else said + "s"


def _amounts(text: str, words: Words, language: str) -> str:
    """Money, numbers with a unit, and plain numbers."""
    if words.money:
        signs = "|".join(map(re.escape, words.money))
        text = re.sub(
            rf"({signs})\s?({_NUMBER})(?!\s?(?:hundred|thousand|million|billion|trillion)\b)",
            lambda m: _money(m[2], words.money[m[1]], language), text,
        )  # fmt: skip
        text = re.sub(
            rf"({signs})\s?({_NUMBER}\s(?:hundred|thousand|million|billion|trillion))\b",
            lambda m: f"{m[2]} {_money('2', words.money[m[1]], language).split()[-1]}", text,
        )  # fmt: skip
    if words.units:
        names = "|".join(map(re.escape, sorted(words.units, key=len, reverse=True)))
        text = re.sub(
            rf"(?<![\w.,])({_NUMBER})\s?({names})(?!\w)",
            lambda m: f"{_say(m[1], language)} {words.units[m[2]][m[1] != '1']}", text,
        )  # fmt: skip
    return re.sub(rf"(?<![\w])-?(?:{_NUMBER})(?!\w)", lambda m: _signed(m[0], language), text)


def _money(amount: str, currency: str, language: str) -> str:
    digits = amount.replace(",", "")
    said = _in_words(float(digits), language, "currency", currency=currency)
    if said is None:
        return f"{_say(amount, language)} {currency}"
    return said if "." in digits else said.split(",")[0]


def _signed(number: str, language: str) -> str:
    said = _say(number.removeprefix("-"), language)
    return f"minus {said}" if number.startswith("-") and language == "en" else said
