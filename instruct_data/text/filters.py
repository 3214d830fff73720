"""Filters of text chats for speech: each has a name, and counts what it refuses under it.

A chat is cut before its first turn that does not pass; a chat whose first turn does not pass is refused.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from instruct_data.text.chats import TextChat, TextPair, chat_line
from instruct_data.text.spoken_form import speakable, tidy
from units.runtime.refusals import Refusals

# Punctuation that stands for words, which no two people read alike, or for nothing that is spoken.
UNSAID = frozenset("#%&*/@\\[]{}\u00a7\u00b6\u2020\u2021\u2030\u2031\u2032\u2033\u2034\u203b\u2042")
JOINERS = "\u200c\u200d"  # in Persian, and in the scripts of India, they shape the letters beside them
_CODE = re.compile(r"```|\{\s*\n|;\s*\n|^\s*(?:def |class |import |from \w+ import|#include|function |var |const |SELECT )|</?\w+[^>]*>|\w+\(\w*\)\s*[;{]|=>", re.MULTILINE)  # fmt: skip
_URL = re.compile(r"https?://|www\.\w|\b[\w-]+\.(?:com|org|net|io|gov|edu)\b|\b[\w.]+@[\w-]+\.\w+", re.IGNORECASE)
_TABLE = re.compile(r"^\s*\|.*\|\s*$|\t\S+\t|^\s*[-+]{3,}[-+|\s]*$", re.MULTILINE)
_LIST = re.compile(r"^\s*(?:[-*\u2022]|\d{1,2}[.)]|[a-z][.)])\s+\S", re.MULTILINE)
CERTAIN = 0.9  # of a language that is not the wanted one, before a text is refused
LIKELY = 0.5  # of a language, before numbers are written out in it though nobody named it
WORDS_TO_TELL = 5  # a shorter text could be of any language

# Scripts without spaces: a character of Chinese or Japanese, four letters of Thai, Lao, Burmese or Khmer, are a word.
_HAN = "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_THAI = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_WORD = re.compile(f"[{_HAN}]|[{_THAI}]{{1,4}}|[^\\s{_HAN}{_THAI}]*\\w[^\\s{_HAN}{_THAI}]*")


def word_count(text: str) -> int:
    """Words; where they are not set apart by spaces, as in Chinese, characters."""
    return len(_WORD.findall(text))


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
    """Whether anything in it is neither letter, mark, digit, space nor punctuation that a reader passes over."""
    return not all(map(_is_sayable, set(text)))


def _is_sayable(character: str) -> bool:
    kind = unicodedata.category(character)
    if kind[0] == "P":
        return kind != "Pc" and character not in UNSAID
    return kind[0] in "LM" or kind == "Zs" or character.isdigit() or character in "\r\n" + JOINERS


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


def likely_language(text: str) -> str | None:
    """ISO 639-1 code of the language that a text is probably of; None if nobody can tell.

    English needs no certainty: a text that could be of many languages, and of English rather than any other, mostly is.
    """
    found, certainty = _identifier().classify(text)
    return found if certainty > LIKELY or (found == "en" and any(map(str.isalpha, text))) else None


def language_code(written: str) -> str:
    """The code that this module knows a language by, of one that is written in another way (EN, en-US, en_GB).

    Raises: ValueError naming those there are.
    """
    code, known = re.split("[-_]", written.strip().lower())[0], sorted(set(_identifier().nb_classes))
    if code not in known:
        raise ValueError(f"unknown language {written!r}; there are {' '.join(known)}")
    return code


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
    """Write numbers, dates, units and abbreviations as they are spoken, in the language above; if it is not given, in the
    one that a chat is probably of, and not at all where that cannot be told."""

    duplicates: bool = True
    """Refuse a chat that was kept before, word for word."""

    def __post_init__(self) -> None:
        if self.language is not None:
            object.__setattr__(self, "language", language_code(self.language))

    def apply(self, chat: TextChat, where: str, refusals: Refusals) -> TextChat | None:
        """What is kept of a chat, made speakable; None if nothing. The turn at which it is cut is counted too."""
        kept: list[TextPair] = []
        turns = [
            dataclasses.replace(turn, question=tidy(turn.question), answer=tidy(turn.answer)) for turn in chat.turns
        ]
        language = self.language
        if self.speakable and not language:
            language = likely_language("\n".join(f"{turn.question}\n{turn.answer}" for turn in turns))
        for turn in turns:
            said = _spoken(turn, language) if self.speakable else turn
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


def kept_chats(chats: Iterable[tuple[str, TextChat]], filters: Filters, refusals: Refusals) -> Iterator[TextChat]:
    """Stream what the filters keep of chats, each with where it stands. Memory grows by 8 bytes and a little a chat."""
    seen: set[bytes] = set()
    for where, chat in chats:
        found = filters.apply(chat, where, refusals)
        if found is None:
            continue
        key = hashlib.blake2b(chat_line(found).encode(errors="surrogatepass"), digest_size=8).digest()
        if filters.duplicates and key in seen:
            refusals.add(where, f"duplicate: {found.turns[0].question[:60]!r}")
        else:
            seen.add(key)
            yield found


def _spoken(turn: TextPair, language: str | None) -> TextPair:
    question, answer = (speakable(text, language) for text in (turn.question, turn.answer))
    return dataclasses.replace(turn, question=question, answer=answer)
