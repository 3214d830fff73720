"""The words that speak units, signs, money and abbreviations, language by language."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Words:
    """The words of one language; what is not listed stays as it is written."""

    units: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Unit after a number -> its name, singular and plural."""
    abbreviations: dict[str, str] = field(default_factory=dict)
    """Abbreviation -> full words."""
    endings: frozenset[str] = frozenset()
    """Abbreviations that often end a sentence."""
    signs: dict[str, str] = field(default_factory=dict)
    """Sign -> word."""
    money: dict[str, tuple[str, str, str, str]] = field(default_factory=dict)
    """Currency sign -> its name, singular and plural, and the name of its hundredth, singular and plural."""
    scales: dict[str, str] = field(default_factory=dict)
    """Scale after a sum of money -> word."""
    joins: dict[str, str] = field(default_factory=dict)
    """Sign between digits that form no number, as in 1.2.3 -> word."""


ENGLISH = Words(
    units={
        "km/h": ("kilometer per hour", "kilometers per hour"),
        "mph": ("mile per hour", "miles per hour"),
        "km": ("kilometer", "kilometers"),
        "cm": ("centimeter", "centimeters"),
        "mm": ("millimeter", "millimeters"),
        "m": ("meter", "meters"),
        "ft": ("foot", "feet"),
        "mi": ("mile", "miles"),
        "kg": ("kilogram", "kilograms"),
        "mg": ("milligram", "milligrams"),
        "g": ("gram", "grams"),
        "lb": ("pound", "pounds"),
        "lbs": ("pound", "pounds"),
        "oz": ("ounce", "ounces"),
        "ml": ("milliliter", "milliliters"),
        "L": ("liter", "liters"),
        "ms": ("millisecond", "milliseconds"),
        "s": ("second", "seconds"),
        "min": ("minute", "minutes"),
        "h": ("hour", "hours"),
        "hrs": ("hour", "hours"),
        "kHz": ("kilohertz", "kilohertz"),
        "Hz": ("hertz", "hertz"),
        "GB": ("gigabyte", "gigabytes"),
        "MB": ("megabyte", "megabytes"),
        "KB": ("kilobyte", "kilobytes"),
        "W": ("watt", "watts"),
        "kW": ("kilowatt", "kilowatts"),
        "%": ("percent", "percent"),
        "\u00b0C": ("degree Celsius", "degrees Celsius"),
        "\u00b0F": ("degree Fahrenheit", "degrees Fahrenheit"),
        "\u00b0": ("degree", "degrees"),
    },
    abbreviations={
        "Dr.": "Doctor",
        "Mr.": "Mister",
        "Mrs.": "Missus",
        "Ms.": "Miss",
        "Prof.": "Professor",
        "St.": "Saint",
        "e.g.": "for example",
        "i.e.": "that is",
        "etc.": "et cetera",
        "vs.": "versus",
        "approx.": "approximately",
        "Jr.": "Junior",
        "Sr.": "Senior",
        "a.m.": "a m",
        "p.m.": "p m",
        "U.S.": "U S",
        "U.K.": "U K",
    },
    endings=frozenset({"etc.", "a.m.", "p.m."}),
    signs={"&": "and", "+": "plus", "=": "equals", "@": "at", "\u00d7": "times", "\u00f7": "divided by"},
    money={
        "$": ("dollar", "dollars", "cent", "cents"),
        "\u20ac": ("euro", "euros", "cent", "cents"),
        "\u00a3": ("pound", "pounds", "penny", "pence"),
    },
    scales={
        "hundred": "hundred",
        "thousand": "thousand",
        "k": "thousand",
        "million": "million",
        "m": "million",
        "mn": "million",
        "billion": "billion",
        "b": "billion",
        "bn": "billion",
        "trillion": "trillion",
        "t": "trillion",
        "tn": "trillion",
    },
    joins={".": " point ", ",": ", ", ":": " to "},
)
WORDS: dict[str, Words] = {"en": ENGLISH}
