"""Text sets: files with one chat a line, either a question and its answer, or several turns.

    {"question": "what is two plus two", "answer": "that makes four", "family": "sum", "split": "train"}
    {"turns": [["who was ada lovelace", "a mathematician"], ["when did she live", "from 1815 to 1852"]]}

`instruct_data/text/sources.py` converts published instruction sets to such files.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from instruct_data.text.reasons import TextReason
from units.corpus.manifest import has_word
from units.runtime.files.gzipped import opened, opened_to_write
from units.runtime.refusals import Refusals, RefusedError


class ChatError(RefusedError):
    """A line that is not a chat."""


@dataclass(frozen=True)
class TextPair:
    """One turn: a question and its answer.

    split: train, dev or test. family: the kind of question, in sets that name one.
    """

    question: str
    answer: str
    split: str = "train"
    family: str = ""


@dataclass(frozen=True)
class TextChat:
    """Turns that follow one another; at least one."""

    turns: tuple[TextPair, ...]


def parse_chat(line: str) -> TextChat:
    """Read one line of a text set, of either form.

    Raises:
        ChatError: if the line is not a chat.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ChatError(TextReason.NOT_JSON, f"not JSON ({error})") from error
    if not isinstance(record, dict):
        raise ChatError(TextReason.NOT_AN_OBJECT, f"not a JSON object: {str(record)[:60]}")
    turns = record["turns"] if "turns" in record else [[record.get("question"), record.get("answer")]]
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, list) and len(turn) == 2 for turn in turns):
        message = f'"turns" must be a list of [question, answer] pairs, found {str(turns)[:60]}'
        raise ChatError(TextReason.WRONG_TYPE, message)
    texts = list(itertools.chain.from_iterable(turns))
    if not all(isinstance(text, str) and text for text in texts):
        raise ChatError(TextReason.NO_TURN, f"each turn needs a question and an answer, found {str(record)[:60]}")
    if any(map(has_lone_surrogate, texts)):
        raise ChatError(TextReason.LONE_SURROGATE, f"half of a surrogate pair in {str(record)[:60]}")
    if not all(map(has_word, texts)):
        raise ChatError(TextReason.NO_WORD, f"a question or an answer has no word in it: {str(record)[:60]}")
    split, family = str(record.get("split") or "train"), str(record.get("family") or "")
    return TextChat(tuple(TextPair(question, answer, split, family) for question, answer in turns))


def has_lone_surrogate(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, which JSON can spell but UTF-8 cannot hold."""
    return re.search("[\ud800-\udfff]", text) is not None


def text_key(text: str) -> bytes:
    """A hash of 10 bytes that identifies a text."""
    return hashlib.blake2b(text.encode(), digest_size=10).digest()


def chat_line(chat: TextChat) -> str:
    """One line of a text set, with the newline: the inverse of parse_chat."""
    first = chat.turns[0]
    if len(chat.turns) > 1:
        record: dict = {"turns": [[turn.question, turn.answer] for turn in chat.turns]}
    else:
        record = {"question": first.question, "answer": first.answer}
    record |= {"family": first.family} if first.family else {}
    record |= {"split": first.split} if first.split != "train" else {}
    return json.dumps(record, ensure_ascii=False) + "\n"


def write_chats(path: Path, chats: Iterable[TextChat]) -> tuple[int, int]:
    """Write a text set, compressed if its name ends in .gz. Without any chat, an existing file stays unchanged.

    Returns:
        The number of chats, and the number of turns.
    """
    chats = iter(chats)
    first, kept, turns = next(chats, None), 0, 0
    if first is None:
        return kept, turns
    with opened_to_write(path) as file:
        for chat in itertools.chain([first], chats):
            file.write(chat_line(chat).encode())
            kept, turns = kept + 1, turns + len(chat.turns)
    return kept, turns


def numbered_chats(
    path: Path, refusals: Refusals, offset: int = 0, first: int = 0, rows: int | None = None
) -> Iterator[tuple[int, TextChat]]:
    """Stream the chats of a text set with their line numbers, from 0. A line that is not a chat is refused.

    Args:
        offset: byte at which to begin.
        first: number of the line at that byte.
        rows: lines to read; None reads all.

    Raises:
        ValueError: if the file is compressed, and cut short or damaged.
    """
    try:
        with opened(path, "rb") as file:
            file.seek(offset)
            for index, line in enumerate(itertools.islice(file, rows), first):
                try:
                    text = line.decode("utf-8-sig")
                    if text.strip():
                        yield index, parse_chat(text)
                except UnicodeDecodeError as error:
                    refusals.add(f"{path}:{index + 1}", TextReason.NOT_UTF8, str(error))
                except ChatError as error:
                    refusals.add(f"{path}:{index + 1}", error)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is cut short or damaged, or not compressed as its name states ({error})") from error


def read_chats(path: Path, refusals: Refusals) -> Iterator[TextChat]:
    """Stream the chats of a text set. A line that is not a chat is refused. Raises what numbered_chats raises."""
    for _, chat in numbered_chats(path, refusals):
        yield chat
