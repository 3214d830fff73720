"""Filters of text chats for speech. Each counts what it leaves out under its own reason code.

A chat is cut before its first turn that does not pass. A chat whose first turn does not pass is left out.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from instruct_data.text.chats import TextChat, TextPair, chat_line
from instruct_data.text.languages import is_foreign, language_code, likely_language
from instruct_data.text.reasons import TextReason
from instruct_data.text.speakability import has_code, has_list, has_table, has_url, is_unspeakable, word_count
from instruct_data.text.spoken.form import speakable, tidy
from units.corpus.manifest import has_word
from units.runtime.command import check_range
from units.runtime.refusals import Refusals
from units.runtime.settings import check_types

EXCERPT = 60  # characters of a question that a refusal shows


@dataclass(frozen=True)
class Filters:
    """Which chats a text set keeps, and how they are written. Lengths are in words."""

    longest_answer: int = 35
    """Leave out longer answers; 35 words is the paper's limit (arXiv 2305.11000, section 3.1)."""
    longest_question: int = 60
    """Leave out longer questions."""
    code: bool = True
    """Leave out program code and mark-up."""
    url: bool = True
    """Leave out web and e-mail addresses."""
    table: bool = True
    """Leave out tables."""
    list: bool = True
    """Leave out lists of two items or more."""
    unspeakable: bool = True
    """Leave out characters that cannot be spoken, such as emoji."""
    language: str | None = None
    """Leave out other languages than this (ISO 639-1, such as en); keep all if not given."""
    speakable: bool = True
    """Write numbers, dates, units and abbreviations as they are spoken: in `language`, or if that is not given, in the
    likely language of the chat, or not at all where its language is uncertain."""
    duplicates: bool = True
    """Leave out a chat that equals a kept one word for word."""

    def __post_init__(self) -> None:
        check_types(self, "filters.")
        for name in ("longest_answer", "longest_question"):
            check_range(f"filters.{name}", getattr(self, name), 1)
        if self.language is not None:
            object.__setattr__(self, "language", language_code(self.language))

    def apply(self, chat: TextChat, id: str, refusals: Refusals) -> TextChat | None:
        """The turns of a chat that pass, in their spoken form; None if there are none.

        A chat that is cut counts as refused once, under the reason of its first turn that does not pass.
        """
        kept: list[TextPair] = []
        turns = [
            dataclasses.replace(turn, question=tidy(turn.question), answer=tidy(turn.answer)) for turn in chat.turns
        ]
        language = self.language
        if self.speakable and not language:
            language = likely_language("\n".join(f"{turn.question}\n{turn.answer}" for turn in turns))
        for turn in turns:
            spoken = _spoken(turn, language) if self.speakable else turn
            reason = self.reason(turn, spoken)
            if reason:
                refusals.add(id, reason, f"cut after turn {len(kept)}" if kept else turn.question[:EXCERPT])
                break
            kept.append(spoken)
        return TextChat(tuple(kept)) if kept else None

    def reason(self, turn: TextPair, spoken: TextPair) -> TextReason | None:
        """The reason of the first filter that a turn does not pass.

        Args:
            turn: as it was written.
            spoken: its spoken form.
        """
        if not (spoken.question.strip() and spoken.answer.strip()):
            return TextReason.EMPTY
        if not (has_word(spoken.question) and has_word(spoken.answer)):
            return TextReason.NO_WORD
        written = (turn.question, turn.answer)
        checks: tuple[tuple[bool, TextReason, Callable[[str], bool]], ...] = (
            (self.code, TextReason.CODE, has_code),
            (self.url, TextReason.URL, has_url),
            (self.table, TextReason.TABLE, has_table),
            (self.list, TextReason.LIST, has_list),
        )
        for enabled, reason, found_in in checks:
            if enabled and any(map(found_in, written)):
                return reason
        if self.unspeakable and (is_unspeakable(spoken.question) or is_unspeakable(spoken.answer)):
            return TextReason.UNSPEAKABLE
        if word_count(spoken.question) > self.longest_question:
            return TextReason.LONG_QUESTION
        if word_count(spoken.answer) > self.longest_answer:
            return TextReason.LONG_ANSWER
        # two short texts may be uncertain on their own and certain together
        if self.language and any(is_foreign(text, self.language) for text in (*written, "\n".join(written))):
            return TextReason.LANGUAGE
        return None


def kept_chats(chats: Iterable[tuple[str, TextChat]], filters: Filters, refusals: Refusals) -> Iterator[TextChat]:
    """Stream the chats that pass. To find duplicates, a hash of 8 bytes of each kept chat stays in memory.

    Args:
        chats: (FILE:LINE, chat) pairs.
    """
    seen: set[bytes] = set()
    for id, chat in chats:
        passed = filters.apply(chat, id, refusals)
        if passed is None:
            continue
        key = hashlib.blake2b(chat_line(passed).encode(errors="surrogatepass"), digest_size=8).digest()
        if filters.duplicates and key in seen:
            refusals.add(id, TextReason.DUPLICATE, passed.turns[0].question[:EXCERPT])
        else:
            seen.add(key)
            yield passed


def _spoken(turn: TextPair, language: str | None) -> TextPair:
    question, answer = (speakable(text, language) for text in (turn.question, turn.answer))
    return dataclasses.replace(turn, question=question, answer=answer)
