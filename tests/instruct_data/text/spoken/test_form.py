"""Text as it is spoken: amounts stay the same amounts, in each language's way of writing them."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from instruct_data.text.spoken.form import speakable, tidy

SPOKEN = {
    "Dr. Wu ran 5 km on May 3, 1999 for $2.50.": "Doctor Wu ran five kilometers on May third, "
    "nineteen ninety-nine for two dollars, fifty cents.",
    "It is 20\u00b0C at 10:05.": "It is twenty degrees Celsius at ten oh five.",
    "at 12:00 or 9am": "at twelve o'clock or nine a m",
    "It costs $3 million, 50% of 1,250,000.": "It costs three million dollars, "
    "fifty percent of one million, two hundred and fifty thousand.",
    "1990-1995": "nineteen ninety to nineteen ninety-five",
    "the 1980s": "the nineteen eighties",
    "2023-04-12": "April twelfth, twenty twenty-three",
    "12/25/2020": "December twenty-fifth, twenty twenty",
    "3 January 2001": "the third of January, two thousand and one",
    "2 + 2 = 4": "two plus two equals four",
    "3.14 and -5": "three point one four and minus five",
    "the 3rd of 22nd": "the third of twenty-second",
    "1 kg, 2 kg": "one kilogram, two kilograms",
    "3/4 of it, 1/2": "three quarters of it, one half",
    "**bold** and *it*": "bold and it",
    "salt & pepper, e.g. here": "salt and pepper, for example here",
    "\u20ac5.20": "five euros, twenty cents",
    "nothing to change here.": "nothing to change here.",
    "$" + "9" * 400: "nine " * 400 + "dollars",
    "$1500 or $1,500": "one thousand, five hundred dollars or one thousand, five hundred dollars",
    "$2,300,000": "two million, three hundred thousand dollars",
    "\u00a34500 a month": "four thousand, five hundred pounds a month",
    "$15 million, $1.5 million": "fifteen million dollars, one point five million dollars",
    "$5M, $3k, $12b": "five million dollars, three thousand dollars, twelve billion dollars",
    "$5-10 and $1-$2 million": "five to ten dollars and one to two million dollars",
    "$0.50, -$5, $3.459": "fifty cents, minus five dollars, three point four five nine dollars",
    "$5x": "$5x",
    "Is it safe? No. It is not.": "Is it safe? No. It is not.",
    "No. 5, No.6 and #7, in C#": "number five, number six and number seven, in C#",
    "What is 10 - 4?": "What is ten minus four?",
    "7-3=4": "seven minus three equals four",
    "1200 + 800 = 2000": "one thousand, two hundred plus eight hundred equals two thousand",
    "1/2 + 1/4, 10 / 2, 6 x 7": "one half plus one quarter, ten divided by two, six times seven",
    "5-6 km, 1914 - 1918": "five to six kilometers, nineteen fourteen to nineteen eighteen",
    "the 90s, his 20s, the '80s": "the nineties, his twenties, the eighties",
    "wait 90s": "wait ninety seconds",
    "1500 kg, 2048 MB": "one thousand, five hundred kilograms, two thousand and forty-eight megabytes",
    "-5\u00b0C": "minus five degrees Celsius",
    "on Main St. He": "on Main Street. He",
    "in St. Louis, on 5th St.": "in Saint Louis, on fifth Street.",
    "5 pm. Come": "five p m. Come",
    "5 p.m. Come at 6 a.m.": "five p m. Come at six a m.",
    "5 p.m. today, 10:30am": "five p m today, ten thirty a m",
    "pears, etc. They": "pears, et cetera. They",
    "call 555-123-4567": "call five five five, one two three, four five six seven",
    "1.2.3, .5, 007": "one point two point three, zero point five, zero zero seven",
    "2x, 3.5x, a4": "2x, 3.5x, a4",
    "the .NET , it": "the .NET, it",
}


@pytest.mark.parametrize("text", SPOKEN)
def test_text_is_written_as_it_is_spoken(text: str) -> None:
    assert speakable(text) == SPOKEN[text]


@pytest.mark.parametrize(
    "language, text, said",
    [
        ("de", "Ich habe 42 \u00c4pfel", "Ich habe zweiundvierzig \u00c4pfel"),
        (
            "de",
            "1.500 Euro, 3,5 Meter, -5 Grad",
            "eintausendf\u00fcnfhundert Euro, drei Komma f\u00fcnf Meter, minus f\u00fcnf Grad",
        ),
        ("de", "3.5, 1'500", "drei Komma f\u00fcnf, eintausendf\u00fcnfhundert"),
        (
            "de",
            "1,500 am 3. Mai, 12.04.2023, 14:30 Uhr",
            "1,500 am 3. Mai, 12.04.2023, 14:30 Uhr",
        ),  # two readings, or none
        ("fr", "J'ai 21 ans et 1 500 euros", "J'ai vingt et un ans et mille cinq cents euros"),
        ("fr", "1\u202f500,5", "mille cinq cents virgule cinq"),
        ("ja", "1,500 \u3068 3.5", "\u5343\u4e94\u767e \u3068 \u4e09\u70b9\u4e94"),
        ("pl", "-5 i 5", "-5 i pi\u0119\u0107"),  # num2words has no negative Polish numbers
        ("xx", "42 and $5", "42 and $5"),
        (None, "Dr. 42 and **$5**", "Dr. 42 and $5"),
    ],
)
def test_numbers_are_read_as_their_language_writes_them(language: str | None, text: str, said: str) -> None:
    assert speakable(text, language) == said


def test_tidy_leaves_one_kind_of_space_and_nothing_invisible() -> None:
    assert tidy("a\r\nb\rc\u2028d\u00a0e\u3000f\u200b\ufeff\u00adg") == "a\nb\nc\nd e fg"
    assert (
        tidy("mi\u200cravam \u0915\u094d\u200d\u0937") == "mi\u200cravam \u0915\u094d\u200d\u0937"
    )  # these join letters


PIECES = st.sampled_from(
    [
        *"0123456789",
        *".,:/-+=* \n'$%#",
        "km",
        "m",
        "st",
        "x",
        "a",
        "pm",
        "St.",
        "No.",
        "May ",
        " million",
        "k",
        "s",
        "\u20ac",
        "\u00b0",
        "1999",
    ]
)


def mixed_words(text: str) -> list[str]:
    """Words of digits and letters."""
    return [word for word in re.findall(r"\w+", text) if re.search(r"\d", word) and re.search(r"[^\W\d_]", word)]


@given(
    text=st.text(max_size=40) | st.lists(PIECES, max_size=12).map("".join),
    language=st.sampled_from(["en", "de", "fr", "xx"]),
)
@example("No.5", "en")
@example("$5M5", "en")
@example("10:30am5", "en")
def test_no_digit_touches_a_word_that_was_written_out(text: str, language: str) -> None:
    assert set(mixed_words(speakable(text, language))) <= set(mixed_words(tidy(text)))


AMOUNT = r"\d{1,3}(,\d{3}){0,3}(\.\d\d)?"


@given(amount=st.from_regex(AMOUNT, fullmatch=True).filter(str.isascii), unit=st.sampled_from(["$", " kg", " people"]))
def test_an_amount_is_spoken_alike_with_any_unit(amount: str, unit: str) -> None:
    if amount[0] == "0" or amount.endswith("0") and "." in amount:
        return
    alone = speakable(f"it is {amount}").removeprefix("it is ").split(" point ")[0]
    said = speakable(f"it is {unit}{amount}." if unit == "$" else f"it is {amount}{unit}.").removeprefix("it is ")
    assert said.startswith(alone) or unit == " people"
    assert not re.search(r"\d", said)


@given(number=st.integers(0, 10**40))
def test_no_digit_of_a_number_stays(number: int) -> None:
    said = speakable(f"about {number} of them")
    assert said.startswith("about ") and said.endswith(" of them")
    assert not any(c.isdigit() for c in said)
