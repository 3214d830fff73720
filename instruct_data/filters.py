"""Filters of text chats for speech: each has a name, and counts what it refuses under it.

A chat is cut before its first turn that does not pass; a chat whose first turn does not pass is refused.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from instruct_data.refusals import Refusals
from instruct_data.spoken_form import speakable
from instruct_data.text_sets import TextChat, TextPair

MARKS = set(
    " \n.,;:!?'\"()-\u2010\u2013\u2014\u2026\u2018\u2019\u201c\u201d\u00ab\u00bb\u00bf\u00a1\u060c\u061b\u061f\u3001\u3002\uff0c\uff01\uff1f\uff1a\uff1b"
)
_CODE = re.compile(r"```|\{\s*\n|;\s*\n|^\s*(?:def |class |import |from \w+ import|#include|function |var |const |SELECT )|</?\w+[^>]*>|\w+\(\w*\)\s*[;{]|=>", re.MULTILINE)  # fmt: skip
_URL = re.compile(r"https?://|www\.\w|\b[\w-]+\.(?:com|org|net|io|gov|edu)\b|\b[\w.]+@[\w-]+\.\w+", re.IGNORECASE)
_TABLE = re.compile(r"^\s*\|.*\|\s*$|\t\S+\t|^\s*[-+]{3,}[-+|\s]*$", re.MULTILINE)
_LIST = re.compile(r"^\s*(?:[-*\u2022]|\d{1,2}[.)]|[a-z][.)])\s+\S", re.MULTILINE)
CERTAIN = 0.9  # of a language that is not the wanted one, before a text is refused
WORDS_TO_TELL = 5  # a shorter text could be of any language


def word_count(text: str) -> int:
    """Words; where words are not set apart by spaces, as in Chinese, characters."""
    return sum(max(1, sum(unicodedata.east_asian_width(c) == "W" for c in word)) for word in text.split())


def has_code(text: str) -> bool:
    return bool(_CODE.search(text))


def has_url(text: str) -> bool:
    return bool(_URL.search(text))


def has_table(text: str) -> bool:
    return bool(_TABLE.search(text))


def has_list(text: str) -> bool:
    """Two lines or more that begin with a bullet or a number."""
    return len(_LIST.findall(text)) > 1


def is_unspeakable(text: str) -> bool:
    """Whether anything in it is neither letter, mark, digit, space nor common punctuation."""
    return any(c not in MARKS and unicodedata.category(c)[0] not in "LM" and not c.isdigit() for c in text)


@functools.cache
def _identifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def is_foreign(text: str, language: str) -> bool:
    """Whether a text is of another language than the one of this ISO 639-1 code, as far as one can tell."""
    if word_count(text) < WORDS_TO_TELL:
        return False
    found, certainty = _identifier().classify(text)
    return found != language and certainty > CERTAIN


@dataclass(frozen=True)
class Filters:
    """What a text set keeps. Lengths are in words."""

    longest_answer: int = 35
    """Longer answers are refused; 35 words is the paper's limit (arXiv 2305.11000, section 3.1)."""
    longest_question: int = 60
    """Longer questions are refused."""
    code: bool = True
    """Refuse program code and mark-up."""
    url: bool = True
    """Refuse addresses of the web and of mail."""
    table: bool = True
    """Refuse tables."""
    list: bool = True
    """Refuse lists of two items or more."""
    unspeakable: bool = True
    """Refuse characters that nobody can say, such as emoji."""
    language: str | None = None
    """Refuse other languages than this (ISO 639-1, such as en); none if not given."""
    speakable: bool = True
    """Write numbers, dates, units and abbreviations as they are spoken, in the language above or English."""

    def apply(self, chat: TextChat, where: str, refusals: Refusals) -> TextChat | None:
        """What is kept of a chat, made speakable; None if nothing. The turn at which it is cut is counted too."""
        kept: list[TextPair] = []
        for turn in chat.turns:
            said = self._spoken(turn) if self.speakable else turn
            reason = self.reason(turn, said)
            if reason:
                refusals.add(where, f"{reason}: {'cut after turn ' + str(len(kept)) if kept else turn.question[:60]!r}")
                break
            kept.append(said)
        return TextChat(tuple(kept)) if kept else None

    def reason(self, turn: TextPair, said: TextPair) -> str | None:
        """The name of the first filter that a turn does not pass. said: its speakable form."""
        written = (turn.question, turn.answer)
        checks: list[tuple[bool, str, Callable[[str], bool]]] = [
            (self.code, "code", has_code), (self.url, "url", has_url), (self.table, "table", has_table),
            (self.list, "list", has_list),
        ]  # fmt: skip
        if not (said.question.strip() and said.answer.strip()):
            return "empty"
        for wanted, name, found in checks:
            if wanted and any(map(found, written)):
                return name
        if self.unspeakable and (is_unspeakable(said.question) or is_unspeakable(said.answer)):
            return "unspeakable"
        if word_count(said.question) > self.longest_question:
            return "long question"
        if word_count(said.answer) > self.longest_answer:
            return "long answer"
        if self.language and any(is_foreign(text, self.language) for text in written):
            return "language"
        return None

    def _spoken(self, turn: TextPair) -> TextPair:
        language = self.language or "en"
        return dataclasses.replace(
            turn, question=speakable(turn.question, language), answer=speakable(turn.answer, language)
        )
