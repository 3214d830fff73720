"""Text as it is spoken: numbers, money, dates, times, units, signs and abbreviations written out.

Numbers are written out in any language of num2words (`spoken_numbers.py`); the words around them are English here, and
of other languages as far as WORDS has them. What is ambiguous (12/04/2023) is read as an American would.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from instruct_data.text.spoken_numbers import number_pattern, say, say_numbers

MONTHS = "January February March April May June July August September October November December".split()
_MONTH = "|".join(f"{month}|{month[:3]}\\.?" for month in MONTHS)


@dataclass(frozen=True)
class Words:
    """The words of a language.

    units: after a number, singular and plural. endings: abbreviations that often end a sentence. money: one and many,
    and of its hundredths. scales: after a sum of money. joins: signs between digits that make no number.
    """

    units: dict[str, tuple[str, str]] = field(default_factory=dict)
    abbreviations: dict[str, str] = field(default_factory=dict)
    endings: frozenset[str] = frozenset()
    signs: dict[str, str] = field(default_factory=dict)
    money: dict[str, tuple[str, str, str, str]] = field(default_factory=dict)
    scales: dict[str, str] = field(default_factory=dict)
    joins: dict[str, str] = field(default_factory=dict)


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
        "Jr.": "Junior", "Sr.": "Senior", "a.m.": "a m", "p.m.": "p m", "U.S.": "U S", "U.K.": "U K",
    },
    endings=frozenset({"etc.", "a.m.", "p.m."}),
    signs={"&": "and", "+": "plus", "=": "equals", "@": "at", "\u00d7": "times", "\u00f7": "divided by"},
    money={
        "$": ("dollar", "dollars", "cent", "cents"), "\u20ac": ("euro", "euros", "cent", "cents"),
        "\u00a3": ("pound", "pounds", "penny", "pence"),
    },
    scales={
        "hundred": "hundred", "thousand": "thousand", "k": "thousand", "million": "million", "m": "million", "mn": "million",
        "billion": "billion", "b": "billion", "bn": "billion", "trillion": "trillion", "t": "trillion", "tn": "trillion",
    },
    joins={".": " point ", ",": ", ", ":": " to "},
)  # fmt: skip
WORDS: dict[str, Words] = {"en": ENGLISH}

_EMPHASIS = r"(?<!\w)(\*{1,3}|_{1,3}|`)(?=\S)([^\n]{1,500}?)(?<=\S)\1(?!\w)"  # of mark-down
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u2060\ufeff]")
_YEAR = r"(?:1[1-9]\d\d|20\d\d)"
_SUM = r"(?<![\w.,])\d+(?:[.,]\d+)*(?:(?:\s?[-\u2013\u2212+*\u00d7\u00f7=]\s?|\s[x/]\s)\d+(?:[.,]\d+)*)+(?:\s?=)?"
_SIGNS = {
    "+": "plus",
    "*": "times",
    "\u00d7": "times",
    "x": "times",
    "/": "divided by",
    "\u00f7": "divided by",
    "=": "equals",
}


def tidy(text: str) -> str:
    """A text with one kind of space and one of line end, and without what nobody sees."""
    text = re.sub(r"(?<=\d)[\u00a0\u2007\u2009\u202f](?=\d{3}(?!\d))", "", text)  # thousands, set apart by a thin space
    text = re.sub("\r\n?|[\x85\u2028\u2029]", "\n", _INVISIBLE.sub("", text))
    text = re.sub("[\u2010\u2011]", "-", text)
    return re.sub("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]", " ", text)


def speakable(text: str, language: str | None = "en") -> str:
    """A text as somebody would read it out.

    Args:
        language: ISO 639-1; of another than English, numbers are written out, and whatever WORDS knows. None if nobody
            knows it: all words and numbers then stay as they are.

    Example: "Dr. Wu ran 5 km on May 3, 1999 for $2.50." ->
        "Doctor Wu ran five kilometers on May third, nineteen ninety-nine for two dollars, fifty cents."
    """
    words = WORDS.get(language or "", Words())
    text = re.sub(r"[ \t]+", " ", tidy(text))
    text = re.sub(_EMPHASIS, r"\2", text)
    if language == "en":
        text = _replaced(text, _english_names())
    text = _abbreviations(text, words)
    if language == "en":
        text = _replaced(text, _english_dates())
    text = _amounts(text, words, language or "")
    if language == "en":
        text = re.sub(_LONE_YEAR, lambda found: _said(found[0], "year"), text)
    if language:
        text = say_numbers(text, language, words.joins)
    for sign, word in words.signs.items():
        text = re.sub(rf" ?{re.escape(sign)} ?", f" {word} ", text)
    return re.sub(r" ([.,])(?!\w)", r"\1", re.sub(r"[ \t]+", " ", text)).strip()


Rules = list[tuple[str, Callable[[re.Match], str]]]


def _replaced(text: str, rules: Rules) -> str:
    for pattern, spoken in rules:
        text = re.sub(pattern, spoken, text)
    return text


def _abbreviations(text: str, words: Words) -> str:
    """Written out; the full stop stays where it ends the sentence too."""

    def spoken(found: re.Match) -> str:
        ends = found[2] is not None or (found[3] is not None and found[1] in words.endings)
        return words.abbreviations[found[1]] + "." * ends

    known = "|".join(map(re.escape, words.abbreviations)) or "(?!)"
    return re.sub(rf"(?<!\w)({known})(?!\w)(?=([^\S\n]*(?:\n|\Z))?)(?=(\s+[A-Z])?)", spoken, text)


def _said(number: str, to: str = "cardinal") -> str:
    return say(number, "en", to) or number


def _english_names() -> Rules:
    """Abbreviations that only their neighbours explain."""
    return [
        (r"\bNo\.\s*(?=\d)", lambda m: "number "),
        (r"(?<!\w)#(?=\d)", lambda m: "number "),
        (r"((?:[a-z\d],? )(?!Mount |Fort |Port |East |Lake )(?:[A-Z][a-z]+|\d+(?:st|nd|rd|th))) St\.(?!\w)(?=(\s+[A-Z]|\s*\Z)?)",
         lambda m: f"{m[1]} Street" + "." * (m[2] is not None)),
        (r"\bSt\.(?!\w|\s+[A-Z])(?=(\s*\Z)?)", lambda m: "Street" + "." * (m[1] is not None)),
    ]  # fmt: skip


def _english_dates() -> Rules:
    """Dates and times, ranges and sums: whatever a digit has beside it."""

    def month_of(name: str) -> str:
        return next(month for month in MONTHS if month.startswith(name[:3].capitalize()))

    def clock(found: re.Match) -> str:
        hour, minute, half = _said(found[1]), int(found[2]), f" {found[3].lower()} m" if found[3] else ""
        if minute == 0:
            return hour + (half or " o'clock")
        return f"{hour} {'oh ' if minute < 10 else ''}{_said(str(minute))}{half}"

    def numeric(found: re.Match, year_at: int, month_at: int, day_at: int) -> str:
        month, day = int(found[month_at]), int(found[day_at])
        if not (1 <= month <= 12 and 1 <= day <= 31):
            return found[0]
        return f"{MONTHS[month - 1]} {_said(str(day), 'ordinal')}, {_said(found[year_at], 'year')}"

    return [
        (r"\b(\d{4})-(\d\d)-(\d\d)\b", lambda m: numeric(m, 1, 2, 3)),
        (r"\b(\d\d?)/(\d\d?)/(\d{4})\b", lambda m: numeric(m, 3, 1, 2)),
        (r"(?<![\w-])\d+(?:-\d+){2,}(?![\w-]|\s?[=+*])", lambda m: ", ".join(_digits(part) for part in m[0].split("-"))),
        (rf"([$\u20ac\u00a3])({number_pattern('en')})\s?[\u2013-]\s?\1?(?=\d)", lambda m: f"{m[2]} to {m[1]}"),
        (rf"\b({_YEAR})\s?[\u2013-]\s?({_YEAR})\b(?!\s?=)", lambda m: f"{m[1]} to {m[2]}"),
        (_SUM, _sum),
        (rf"\b({_MONTH})\s+(\d\d?)(?:st|nd|rd|th)?(?:,?\s+(\d{{4}}))?\b",
         lambda m: f"{month_of(m[1])} {_said(m[2], 'ordinal')}" + (f", {_said(m[3], 'year')}" if m[3] else "")),
        (rf"\b(\d\d?)(?:st|nd|rd|th)?\s+({_MONTH})\s+(\d{{4}})\b",
         lambda m: f"the {_said(m[1], 'ordinal')} of {month_of(m[2])}, {_said(m[3], 'year')}"),
        (r"(?<![\w:.,])([01]?\d|2[0-3]):([0-5]\d)(?![\d:])(?:\s?([apAP])\s?[mM]\b)?(?!\w)", clock),
        (r"(?<![\w:.,])(1[0-2]|[1-9])\s?([apAP])\s?[mM]\b", lambda m: f"{_said(m[1])} {m[2].lower()} m"),
        (r"(?<![\w/.,])([1-9])/([2-9])\b(?!/)", lambda m: _fraction(int(m[1]), int(m[2]))),
        (r"\b(1[1-9]\d|20\d)0['\u2019]?s\b", lambda m: _decade(m[0][:4])),
        (r"\b((?i:the|his|her|their|my|your|our|early|mid|late)[\s-])['\u2019]?([2-9]0)s\b|(?<!\w)['\u2019]([2-9]0)s\b",
         lambda m: (m[1] or "") + _decade(m[2] or m[3])),
        (r"\b(\d+)(?:st|nd|rd|th)\b", lambda m: _said(m[1], "ordinal")),
    ]  # fmt: skip


# Four digits that could be a year, unless they are an amount or a term of a sum.
_LONE_YEAR = (
    r"(?<![\d.,$\u20ac\u00a3=+])(?<![=+] )(?<!plus )(?<!minus )(?<!times )(?<!divided by )(?<!equals )"
    rf"\b{_YEAR}\b(?![.,:/]?\d|\s?[%=+]| (?:plus|minus|times|divided by|equals) )"
)


def _digits(number: str) -> str:
    return " ".join(map(_said, number))


def _sum(found: re.Match) -> str:
    """A sum, in which a dash takes away, or a range, in which a dash between digits leads from one to the other."""
    is_sum = re.search(r"[=+*\u00d7\u00f7\u2212]|\s[x/]\s", found[0])

    def sign(one: re.Match) -> str:
        dash = "minus" if is_sum or one[1].strip() != one[1] else "to"
        return f" {_SIGNS.get(one[1].strip(), dash)} "

    return re.sub(r"(?<=\d)(\s?[-\u2013\u2212+*\u00d7\u00f7=x/]\s?)", sign, found[0]).rstrip()


def _fraction(above: int, below: int) -> str:
    part = {2: "half", 4: "quarter"}.get(below) or _said(str(below), "ordinal")
    parts = "halves" if below == 2 else f"{part}s"
    return f"{_said(str(above))} {part if above == 1 else parts}"


def _decade(year: str) -> str:
    said = _said(year, "year")
    return said[:-1] + "ies" if said.endswith("y") else said + "s"


def _amounts(text: str, words: Words, language: str) -> str:
    """Money, and numbers with a unit."""
    number = number_pattern(language)
    alone = r"(?![.,]?\d|\w)"
    if words.money:
        signs, scales = (
            "|".join(map(re.escape, sorted(names, key=len, reverse=True))) for names in (words.money, words.scales)
        )
        scale = rf"(?:\s?((?i:{scales}))\b)?"
        text = re.sub(
            rf"(?<!\w)([-\u2212]?)(?:US)?({signs})\s?({number}){scale}{alone}",
            lambda m: "minus " * bool(m[1]) + _money(m[3], m[4], words.money[m[2]], words, language), text,
        )  # fmt: skip
    if words.units:
        names = "|".join(map(re.escape, sorted(words.units, key=len, reverse=True)))
        text = re.sub(
            rf"(?<![\w.,])([-\u2212]?)({number})\s?({names})(?!\w)",
            lambda m: f"{'minus ' * bool(m[1])}{say(m[2], language)} {words.units[m[3]][m[2] != '1']}", text,
        )  # fmt: skip
    return text


def _money(amount: str, scale: str | None, names: tuple[str, str, str, str], words: Words, language: str) -> str:
    one, many, cent, cents = names
    whole, _, part = amount.partition(".")
    if scale:
        return f"{say(amount, language)} {words.scales[scale.lower()]} {many}"
    if len(part) > 2:
        return f"{say(amount, language)} {many}"
    hundredths = int(part.ljust(2, "0"))
    said = [f"{say(whole, language)} {one if whole == '1' else many}"] if whole.strip("0,") or not hundredths else []
    said += [f"{say(str(hundredths), language)} {cent if hundredths == 1 else cents}"] if hundredths else []
    return ", ".join(said)
