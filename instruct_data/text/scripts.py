"""The scripts that a text is written in, and those that languages are written in.

A script is named by the first word of its letters' Unicode names: LATIN, CYRILLIC, ARABIC, DEVANAGARI, HANGUL, ...; CJK
are Chinese characters, KANA both scripts of Japanese. Digits, punctuation and symbols belong to none.
"""

from __future__ import annotations

import functools
import unicodedata
from collections import Counter

from instruct_data.text.speakability import words

LATIN = frozenset({"LATIN"})
_CHINESE = frozenset({"CJK", "BOPOMOFO"})
# ISO 639-1, or 639-3 where there is no shorter code. A language that is not listed is written in Latin.
_OTHER_SCRIPTS: dict[str, frozenset[str]] = {
    **dict.fromkeys("ar ary arz fa ps sd sdh ug ur uzs".split(), frozenset({"ARABIC"})),
    **dict.fromkeys("ba be bg kk ky mk mn ru tg tt uk".split(), frozenset({"CYRILLIC"})),
    **dict.fromkeys("az bs crh sr tk uz".split(), frozenset({"CYRILLIC", "LATIN"})),
    **dict.fromkeys("hi mr ne sa".split(), frozenset({"DEVANAGARI"})),
    **dict.fromkeys("as bn".split(), frozenset({"BENGALI"})),
    **dict.fromkeys("wuu yue zh".split(), _CHINESE),
    **dict.fromkeys("el grc".split(), frozenset({"GREEK"})),
    **dict.fromkeys("hbo he yi".split(), frozenset({"HEBREW"})),
    "am": frozenset({"ETHIOPIC"}),
    "dz": frozenset({"TIBETAN"}),
    "gom": frozenset({"DEVANAGARI", "LATIN"}),
    "gu": frozenset({"GUJARATI"}),
    "hy": frozenset({"ARMENIAN"}),
    "ja": frozenset({"CJK", "KANA"}),
    "ka": frozenset({"GEORGIAN"}),
    "km": frozenset({"KHMER"}),
    "kn": frozenset({"KANNADA"}),
    "ko": frozenset({"HANGUL"}),
    "ku": frozenset({"ARABIC", "LATIN"}),
    "lo": frozenset({"LAO"}),
    "ml": frozenset({"MALAYALAM"}),
    "my": frozenset({"MYANMAR"}),
    "or": frozenset({"ORIYA"}),
    "pa": frozenset({"GURMUKHI", "ARABIC"}),
    "si": frozenset({"SINHALA"}),
    "ta": frozenset({"TAMIL"}),
    "te": frozenset({"TELUGU"}),
    "th": frozenset({"THAI"}),
}
_KANA = {"HIRAGANA", "KATAKANA"}
_SYMBOLS = {"LATIN", "GREEK"}  # their letters are symbols in formulas of every language
JAPANESE_SHARE = 1 / 6  # of kana among kana and Chinese characters, from which on the text is Japanese


def scripts_of(language: str) -> frozenset[str]:
    """The scripts that a language (ISO 639) is written in."""
    return _OTHER_SCRIPTS.get(language, LATIN)


def script_counts(text: str) -> Counter[str]:
    """The number of words of a text in each script; a Chinese character and a kana are a word each.

    Words without a letter do not count, nor do symbols such as the x of a formula or MP3. The Chinese characters of a
    Japanese text count as KANA.
    """
    counts: Counter[str] = Counter()
    for word in words(unicodedata.normalize("NFKC", text)):
        if script := _script_of_word(word):
            counts[script] += 1
    if counts["KANA"] >= JAPANESE_SHARE * (counts["KANA"] + counts["CJK"]):
        counts["KANA"] += counts.pop("CJK", 0)
    return +counts


def words_in(text: str, scripts: frozenset[str]) -> str:
    """The words of a text without those in other scripts."""
    scripts_of_words = ((word, _script_of_word(unicodedata.normalize("NFKC", word))) for word in words(text))
    return " ".join(word for word, script in scripts_of_words if script is None or script in scripts)


def _script_of_word(word: str) -> str | None:
    """The script of most of a word's letters; None if it has no letter, or is a symbol."""
    letters = Counter(script for script in map(_script, word) if script)
    if not letters:
        return None
    (script, _), *_ = letters.most_common(1)
    is_symbol = letters.total() == 1 or any(c.isdigit() or unicodedata.category(c) == "Sm" for c in word)
    return None if script in _SYMBOLS and is_symbol else script


@functools.lru_cache(maxsize=4096)
def _script(character: str) -> str | None:
    """The script of a letter; None for other characters, and for modifier letters, which many scripts share."""
    if unicodedata.category(character) not in ("Lu", "Ll", "Lt", "Lo"):
        return None
    script = unicodedata.name(character, "").partition(" ")[0].partition("-")[0]
    return "KANA" if script in _KANA else script or None
