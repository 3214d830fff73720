"""Whether a text can be spoken: its length in words, and the code, addresses, tables and characters it holds."""

from __future__ import annotations

import re
import unicodedata

# Punctuation that stands for words, but not for the same words in every reader's mouth, or that is never spoken.
UNSPOKEN = frozenset("#%&*/@\\[]{}\u00a7\u00b6\u2020\u2021\u2030\u2031\u2032\u2033\u2034\u203b\u2042")
JOINERS = "\u200c\u200d"  # in Persian and in the scripts of India they shape the letters beside them

_CODE = re.compile(
    r"```|\{\s*\n|;\s*\n"
    r"|^\s*(?:def |class |import |from \w+ import|#include|function |var |const |SELECT )"
    r"|</?\w+[^>]*>|\w+\(\w*\)\s*[;{]|=>",
    re.MULTILINE,
)
_URL = re.compile(r"https?://|www\.\w|\b[\w-]+\.(?:com|org|net|io|gov|edu)\b|\b[\w.]+@[\w-]+\.\w+", re.IGNORECASE)
_TABLE = re.compile(r"^\s*\|.*\|\s*$|\t\S+\t|^\s*[-+]{3,}[-+|\s]*$", re.MULTILINE)
_LIST_ITEM = re.compile(r"^\s*(?:[-*\u2022]|\d{1,2}[.)]|[a-z][.)])\s+\S", re.MULTILINE)

# Scripts without spaces: a character of Chinese or Japanese is a word, and so are four letters of Thai, Lao, Burmese
# or Khmer.
_HAN = "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_THAI = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_WORD = re.compile(f"[{_HAN}]|[{_THAI}]{{1,4}}|[^\\s{_HAN}{_THAI}]*\\w[^\\s{_HAN}{_THAI}]*")


def words(text: str) -> list[str]:
    """The words of a text, punctuation included; in scripts without spaces, such as Chinese, its characters."""
    return _WORD.findall(text)


def word_count(text: str) -> int:
    """The number of words; in scripts without spaces, such as Chinese, the number of characters."""
    return len(words(text))


def has_code(text: str) -> bool:
    """Whether a text holds program code or mark-up."""
    return bool(_CODE.search(text))


def has_url(text: str) -> bool:
    """Whether a text holds a web address or an e-mail address."""
    return bool(_URL.search(text))


def has_table(text: str) -> bool:
    """Whether a text holds a table, drawn with bars, tabs or dashes."""
    return bool(_TABLE.search(text))


def has_list(text: str) -> bool:
    """Whether two lines or more begin with a bullet or a number."""
    return len(_LIST_ITEM.findall(text)) > 1


def is_unspeakable(text: str) -> bool:
    """Whether a text holds other characters than letters, marks, digits, spaces and silent punctuation."""
    return not all(map(_is_speakable, set(text)))


def _is_speakable(character: str) -> bool:
    category = unicodedata.category(character)
    if category[0] == "P":
        return category != "Pc" and character not in UNSPOKEN
    return category[0] in "LM" or category == "Zs" or character.isdigit() or character in "\r\n" + JOINERS
