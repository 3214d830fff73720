"""Text sets as parts of a conversation set: chats, and the task repeat."""

from __future__ import annotations

import gzip
import itertools
import random
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from instruct_data.build.config import INSTRUCTIONS
from instruct_data.build.cross_modal import read_instructions
from instruct_data.build.splits import Splits, copies
from instruct_data.text.chats import TextChat, TextPair, numbered_chats
from speechgpt.dialogue import INPUT_FOLLOWS, Conversation, Message
from units.runtime.files.gzipped import opened
from units.runtime.refusals import Refusals

PART_LINES = 10_000


def family_copies(families: Iterable[tuple[int, str]], least: int, most: int | None, seed: int) -> dict[int, int]:
    """Balance the families of questions.

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


@dataclass(frozen=True)
class ChatPart:
    """A range of lines of a text set, as chats or, of the first turn, as the task repeat.

    offset: byte at which it begins. first: number of its first line, from 0. rows: how many lines.
    weight: how often each line is in the set.
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
        yield from numbered_chats(self.path, refusals, self.offset, self.first, self.rows)

    def conversations(self, refusals: Refusals) -> Iterator[tuple[str, Conversation]]:
        """Each conversation with its split."""
        for index, chat in self.lines(refusals):
            split = self.splits.split_of("", chat.turns[0].question)
            for copy in range(copies(self.weight, self.seed, self.task, index)):
                name = f"chat-{index}{f'~{copy + 1}' if copy else ''}"
                if self.task == "repeat":
                    yield split, repeat_conversation(chat.turns[0], index, self.seed, self.instructions)
                else:
                    yield split, chat_conversation(chat, name)


@dataclass(frozen=True)
class BalancedPart:
    """A whole text set whose families are balanced (see family_copies), as chats or as the task repeat."""

    path: Path
    rows: int
    task: str
    least: int
    most: int | None
    seed: int
    splits: Splits
    instructions: Path = INSTRUCTIONS

    def sources(self) -> list[Path]:
        return [self.path]

    def conversations(self, refusals: Refusals) -> Iterator[tuple[str, Conversation]]:
        """Each conversation with its split."""
        whole = ChatPart(self.path, 0, 0, self.rows, "chat", self.seed, self.splits)
        families = ((index, chat.turns[0].family) for index, chat in whole.lines(refusals))
        times = family_copies(families, self.least, self.most, self.seed)
        chats = (chat for index, chat in whole.lines(Refusals()) for _ in range(times.get(index, 0)))
        for number, chat in enumerate(chats):
            split = self.splits.split_of("", chat.turns[0].question)
            if self.task == "repeat":
                yield split, repeat_conversation(chat.turns[0], number, self.seed, self.instructions)
            else:
                yield split, chat_conversation(chat, f"chat-{number}")


def chat_parts(
    path: Path, task: str, seed: int, splits: Splits, weight: float = 1.0, folder: Path = INSTRUCTIONS
) -> list[ChatPart]:
    """A text set in parts of 10,000 lines. Raises ValueError if it is compressed and was cut short or damaged."""
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
