"""Text sets on disk, one chat a line: one question and answer, or several turns.

    {"question": "what is two plus two", "answer": "that makes four", "family": "sum", "split": "train"}
    {"turns": [["who was ada lovelace", "a mathematician"], ["when did she live", "from 1815 to 1852"]]}

`text_sources.py` makes such files out of the sets that others publish.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from units.runtime.gzipped import opened, opened_to_write
from units.runtime.refusals import Refusals


@dataclass(frozen=True)
class TextPair:
    """A question and its answer; `split` and `family` where the set has them."""

    question: str
    answer: str
    split: str = "train"
    family: str = ""


@dataclass(frozen=True)
class TextChat:
    """Questions and answers that follow one another; at least one."""

    turns: tuple[TextPair, ...]


def parse_chat(line: str, where: str) -> TextChat:
    """Read one line of either form. Raises ValueError beginning with `where`."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error})") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where}: not an object, but {str(record)[:60]}")
    turns = record["turns"] if "turns" in record else [[record.get("question"), record.get("answer")]]
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, list) and len(turn) == 2 for turn in turns):
        raise ValueError(f'{where}: "turns" are pairs of question and answer, not {str(turns)[:60]}')
    texts = list(itertools.chain.from_iterable(turns))
    if not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"{where}: each turn needs a question and an answer, has {str(record)[:60]}")
    if any(map(is_broken, texts)):
        raise ValueError(f"{where}: half a character, a surrogate without its other half, in {str(record)[:60]}")
    split, family = str(record.get("split") or "train"), str(record.get("family") or "")
    return TextChat(tuple(TextPair(question, answer, split, family) for question, answer in turns))


def is_broken(text: str) -> bool:
    """Whether half a surrogate pair is in it, which JSON can spell but no file can hold."""
    return re.search("[\ud800-\udfff]", text) is not None


def chat_line(chat: TextChat) -> str:
    """Inverse of parse_chat, with the newline."""
    first = chat.turns[0]
    if len(chat.turns) > 1:
        record: dict = {"turns": [[turn.question, turn.answer] for turn in chat.turns]}
    else:
        record = {"question": first.question, "answer": first.answer}
    record |= {"family": first.family} if first.family else {}
    record |= {"split": first.split} if first.split != "train" else {}
    return json.dumps(record, ensure_ascii=False) + "\n"


def write_chats(path: Path, chats: Iterable[TextChat]) -> tuple[int, int]:
    """Write a text set whole, compressed if its name ends in .gz; of no chats at all none, so that a run that came to
    nothing leaves what was there.

    Returns: how many chats, and how many turns.
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
    """Chats of a text set with the numbers of their lines, from 0; a line that is no chat is refused.

    Args:
        offset: byte at which to begin. first: number of the line there. rows: how many lines to read, None for all.

    Raises: ValueError if the file is compressed and was cut short or damaged.
    """
    try:
        with opened(path, "rb") as file:
            file.seek(offset)
            for index, line in enumerate(itertools.islice(file, rows), first):
                try:
                    text = line.decode("utf-8-sig")
                    if text.strip():
                        yield index, parse_chat(text, "no chat")
                except UnicodeDecodeError as error:
                    refusals.add(f"{path}:{index + 1}", f"not UTF-8: {error}")
                except ValueError as error:
                    refusals.add(f"{path}:{index + 1}", error)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} was cut short or damaged, or is not compressed as its name says ({error})") from error


def read_chats(path: Path, refusals: Refusals) -> Iterator[TextChat]:
    """Stream a text set; a line that is no chat is refused. Raises: as numbered_chats."""
    for _, chat in numbered_chats(path, refusals):
        yield chat
