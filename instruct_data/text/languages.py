"""Which language a text is written in: by its scripts, and by py3langid (extra `data`) among those of one script.

Languages are ISO 639-1 codes, such as `en`.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from typing import Any

from instruct_data.text.scripts import script_counts, scripts_of, words_in
from instruct_data.text.speakability import word_count, words
from units.runtime.extras import required

CERTAIN = 0.9  # probability of another language, above which a text is refused
LIKELY = 0.5  # probability of a language, above which numbers are written out in it
# A language below this probability is excluded where another is likely. Measured on 1,500 pieces of English text of 3
# to 7 words: English always had 0.01 or more.
EXCLUDED = 0.001
POSSIBLE = 0.05  # probability of English, from which on the rest of a text with loan words may be English
SHORTEST_TEXT = 3  # words; a shorter text may be of any language of its script
SHORTEST_KANJI = 8  # Chinese characters; a shorter text of these alone may be Japanese as well
# py3langid's varieties of a language, which count as that language
_VARIETIES = {"yue": "zh", "wuu": "zh", "ary": "ar", "arz": "ar", "nn": "no", "grc": "el", "hbo": "he", "pcm": "en"}
_NO_LANGUAGE = "zxx"  # py3langid's code for a text without linguistic content


@functools.cache
def _identifier() -> Any:
    langid = required("py3langid.langid")
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


def is_foreign(text: str, language: str) -> bool:
    """Whether a text is of another language than this one: most words in other scripts, or certain by its letters.

    A text without words, such as a number or a formula, is of no other language. Nor are, in the scripts of the
    language, names and texts of fewer than three different words.
    """
    counts, own = script_counts(text), scripts_of(language)
    words_of_own = sum(number for script, number in counts.items() if script in own)
    if counts.total() > 2 * words_of_own:
        return True
    if not counts or len(set(words(text.casefold()))) < SHORTEST_TEXT or _is_name(text):
        return False
    if language == "ja" and not counts["KANA"] and counts["CJK"] < SHORTEST_KANJI and _is_in_jis(text):
        return False
    text = words_in(text, own) if counts.total() > words_of_own else text
    text = text.lower() if text.isupper() else text  # py3langid has seen few texts in capitals
    if language == "en" and _is_english_with_loans(text):
        return False
    probabilities = _probabilities(text)
    ((found, probability),) = probabilities.most_common(1)
    if found in (language, _NO_LANGUAGE):
        return False
    return probability > CERTAIN or (probability > LIKELY and probabilities[language] < EXCLUDED)


def likely_language(text: str) -> str | None:
    """The language that a text probably has; None if that is uncertain.

    English needs no certainty: a text whose most likely language is English usually is English.
    """
    ((found, probability),) = _probabilities(text).most_common(1)
    return found if probability > LIKELY or (found == "en" and any(map(str.isalpha, text))) else None


def _probabilities(text: str) -> Counter[str]:
    """The probability of each language, that of its varieties included."""
    probabilities: Counter[str] = Counter()
    for code, probability in _identifier().rank(text):
        probabilities[_VARIETIES.get(code, code)] += float(probability)  # type: ignore[assignment]
    return probabilities


def _is_english_with_loans(text: str) -> bool:
    """Whether a text may be English apart from its words with accents, which are names or loan words.

    Those may be half of the words.
    """
    plain = [word for word in words(text) if not any(letter.isalpha() and ord(letter) > 127 for letter in word)]
    if not word_count(text) / 2 <= len(plain) < word_count(text):
        return False
    return _probabilities(" ".join(plain))["en"] > POSSIBLE


def _is_name(text: str) -> bool:
    """Whether all words of a text begin with a capital letter, as in a name; a text in capitals is none."""
    return not text.isupper() and all(next(filter(str.isalpha, word), "a").isupper() for word in words(text))


def _is_in_jis(text: str) -> bool:
    """Whether Japan's standard of 1978 has all characters of a text; most simplified Chinese ones are not in it."""
    try:
        text.encode("shift_jis")
    except UnicodeEncodeError:
        return False
    return True


def language_code(spelling: str) -> str:
    """The ISO 639-1 code of another spelling of it (EN, en-US, en_GB).

    Raises:
        ValueError: if the language is unknown; the message lists the known ones.
    """
    code, known = re.split("[-_]", spelling.strip().lower())[0], sorted(set(_identifier().nb_classes))
    if code not in known:
        raise ValueError(f"unknown language {spelling!r}; there are {' '.join(known)}")
    return code
