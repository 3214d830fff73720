"""Text sets on disk, one chat a line: one question and answer, or several turns.

    {"question": "what is two plus two", "answer": "that makes four", "family": "sum", "split": "train"}
    {"turns": [["who was ada lovelace", "a mathematician"], ["when did she live", "from 1815 to 1852"]]}

`text_sources.py` makes such files out of the sets that others publish.
"""

from __future__ import annotations

import gzip
import itertools
import json
import random
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from instruct_data.cross_modal import INSTRUCTIONS, read_instructions
from instruct_data.records import opened, opened_to_write
from instruct_data.refusals import Refusals
from instruct_data.splits import Splits, copies
from speechgpt.dialogue import INPUT_FOLLOWS, Conversation, Message

PART_LINES = 10_000


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


def family_copies(families: Iterable[tuple[int, str]], least: int, most: int | None, seed: int) -> dict[int, int]:
    """Let no family of questions drown and none drown the others.

    Args:
        families: the number of each chat with its family.
        least: repeat the chats of a smaller family, whole times, until it has about as many.
        most: draw as many from a larger family, by seed; None keeps all.

    Returns: how often each chat counts, of those that do.
    """
    numbers: dict[str, list[int]] = {}
    for number, family in families:
        numbers.setdefault(family, []).append(number)
    draw = random.Random(f"families {seed}")
    times: dict[int, int] = {}
    for members in numbers.values():
        kept = members if most is None else draw.sample(members, min(most, len(members)))
        times |= dict.fromkeys(kept, max(1, round(least / len(members))))
    return times


def chat_conversation(chat: TextChat, name: str) -> Conversation:
    """All turns as text."""
    turns = [(Message("human", (turn.question,)), Message("assistant", (turn.answer,))) for turn in chat.turns]
    return Conversation(tuple(itertools.chain.from_iterable(turns)), "chat", name)


def repeat_conversation(pair: TextPair, index: int, seed: int, folder: Path = INSTRUCTIONS) -> Conversation:
    """A pair in the form of a chain, without sound: the question said back, then the answer.

    What an LLM knows when it is asked in text, it then also knows after a transcript of its own.
    """
    description = random.Random(f"{seed} repeat {index} {pair.question}").choice(read_instructions("repeat", folder))
    human = Message("human", (f"{description} {INPUT_FOLLOWS} {pair.question}",))
    return Conversation((human, Message("assistant", (pair.question, pair.answer))), "repeat", f"repeat-{index}")


# --- parts of a set


@dataclass(frozen=True)
class ChatPart:
    """A stretch of lines of a text set, as chats or, of the first turn, as the task repeat.

    offset: byte at which it begins. first: number of its first line, from 0. rows: how many lines.
    weight: how often each line stands in the set.
    """

    path: Path
    offset: int
    first: int
    rows: int
    task: str
    seed: int
    splits: Splits
    weight: float = 1.0
    instructions: Path = INSTRUCTIONS

    def sources(self) -> list[Path]:
        return [self.path]

    def lines(self, refusals: Refusals) -> Iterator[tuple[int, TextChat]]:
        """Its chats with their numbers; a line that is no chat is refused."""
        with opened(self.path, "rb") as file:
            file.seek(self.offset)
            for index, line in enumerate(itertools.islice(file, self.rows), self.first):
                try:
                    text = line.decode("utf-8-sig")
                    if text.strip():
                        yield index, parse_chat(text, "no chat")
                except UnicodeDecodeError as error:
                    refusals.add(f"{self.path}:{index + 1}", f"not UTF-8: {error}")
                except ValueError as error:
                    refusals.add(f"{self.path}:{index + 1}", error)

    def conversations(self, refusals: Refusals) -> Iterator[tuple[str, Conversation]]:
        """Each conversation with the side it stands on."""
        for index, chat in self.lines(refusals):
            side = self.splits.side("", chat.turns[0].question)
            for copy in range(copies(self.weight, self.seed, self.task, index)):
                name = f"chat-{index}{f'~{copy + 1}' if copy else ''}"
                if self.task == "repeat":
                    yield side, repeat_conversation(chat.turns[0], index, self.seed, self.instructions)
                else:
                    yield side, chat_conversation(chat, name)


@dataclass(frozen=True)
class BalancedPart:
    """A whole text set whose families are balanced (see family_copies), as chats, then as the task repeat."""

    path: Path
    rows: int
    least: int
    most: int | None
    seed: int
    splits: Splits
    instructions: Path = INSTRUCTIONS

    def sources(self) -> list[Path]:
        return [self.path]

    def conversations(self, refusals: Refusals) -> Iterator[tuple[str, Conversation]]:
        """Each conversation with the side it stands on."""
        whole = ChatPart(self.path, 0, 0, self.rows, "chat", self.seed, self.splits)
        families = ((index, chat.turns[0].family) for index, chat in whole.lines(refusals))
        times = family_copies(families, self.least, self.most, self.seed)
        for task in ("chat", "repeat"):
            chats = (chat for index, chat in whole.lines(Refusals()) for _ in range(times.get(index, 0)))
            for number, chat in enumerate(chats):
                side = self.splits.side("", chat.turns[0].question)
                if task == "repeat":
                    yield side, repeat_conversation(chat.turns[0], number, self.seed, self.instructions)
                else:
                    yield side, chat_conversation(chat, f"chat-{number}")


def chat_parts(
    path: Path, task: str, seed: int, splits: Splits, weight: float = 1.0, folder: Path = INSTRUCTIONS
) -> list[ChatPart]:
    """A text set in stretches of 10,000 lines. Raises ValueError if it is compressed and was cut short or damaged."""
    parts: list[ChatPart] = []
    offset = 0
    try:
        with opened(path, "rb") as file:
            while sizes := [len(line) for line in itertools.islice(file, PART_LINES)]:
                first = len(parts) * PART_LINES
                parts.append(ChatPart(path.resolve(), offset, first, len(sizes), task, seed, splits, weight, folder))
                offset += sum(sizes)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} was cut short or damaged, or is not compressed as its name says ({error})") from error
    return parts


def read_chats(path: Path, refusals: Refusals) -> Iterator[TextChat]:
    """Stream a text set; a line that is no chat is refused."""
    for part in chat_parts(path, "chat", 0, Splits()):
        for _, chat in part.lines(refusals):
            yield chat
