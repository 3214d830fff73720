"""Text sets on disk, one chat a line: one question and answer, or several turns.

    {"question": "what is two plus two", "answer": "that makes four", "family": "sum", "split": "train"}
    {"turns": [["who was ada lovelace", "a mathematician"], ["when did she live", "from 1815 to 1852"]]}

`text_sources.py` makes such files out of the sets that others publish.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from instruct_data.cross_modal import INSTRUCTIONS, read_instructions
from instruct_data.records import opened_to_write
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


def read_pairs(path: str | Path) -> list[TextPair]:
    """Read a jsonl of pairs whole.

    Raises: ValueError naming the line that is no JSON, or lacks a question or an answer.
    """
    with Path(path).open(encoding="utf-8") as lines:
        return [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]


def parse_chat(line: str, where: str) -> TextChat:
    """Read one line of either form. Raises ValueError beginning with `where`."""
    if '"turns"' not in line:
        chat = TextChat((_parse(line, where),))
    else:
        try:
            chat = TextChat(tuple(TextPair(question, answer) for question, answer in json.loads(line)["turns"]))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f'{where}: "turns" are pairs of question and answer ({error})') from error
    texts = [text for turn in chat.turns for text in (turn.question, turn.answer)]
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"{where}: each turn needs a question and an answer, has {line.strip()[:60]}")
    if any(map(is_broken, texts)):
        raise ValueError(f"{where}: half a character, a surrogate without its other half, in {line.strip()[:60]}")
    return chat


def is_broken(text: str) -> bool:
    """Whether half a surrogate pair is in it, which JSON can spell but no file can hold."""
    return re.search("[\ud800-\udfff]", text) is not None


def chat_line(chat: TextChat) -> str:
    """Inverse of parse_chat, with the newline."""
    if len(chat.turns) > 1:
        record: dict = {"turns": [[turn.question, turn.answer] for turn in chat.turns]}
    else:
        (turn,) = chat.turns
        record = {"question": turn.question, "answer": turn.answer}
        record |= {"family": turn.family} if turn.family else {}
        record |= {"split": turn.split} if turn.split != "train" else {}
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


def _parse(line: str, where: str) -> TextPair:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error})") from error
    said = [record.get(name) for name in ("question", "answer")] if isinstance(record, dict) else []
    if not (said and all(isinstance(text, str) and text for text in said)):
        raise ValueError(f"{where}: needs a question and an answer, has {line.strip()[:60]}")
    return TextPair(record["question"], record["answer"], record.get("split", "train"), record.get("family", ""))


def balance_families(pairs: list[TextPair], least: int, most: int | None, seed: int) -> list[TextPair]:
    """Let no family of questions drown and none drown the others.

    Args:
        least: repeat the pairs of a smaller family, whole times, until it has about as many.
        most: draw as many from a larger family, by seed; None keeps all.

    Returns: the pairs in their order, each as often as it counts.
    """
    families: dict[str, list[int]] = {}
    for index, pair in enumerate(pairs):
        families.setdefault(pair.family, []).append(index)
    draw = random.Random(f"families {seed}")
    times = [0] * len(pairs)
    for members in families.values():
        kept = members if most is None else draw.sample(members, min(most, len(members)))
        for index in kept:
            times[index] = max(1, round(least / len(members)))
    return [pair for pair, count in zip(pairs, times) for _ in range(count)]


def chat_conversations(pairs: Sequence[TextPair]) -> Iterator[Conversation]:
    """Each pair as a text chat."""
    for i, pair in enumerate(pairs):
        yield chat_conversation(TextChat((pair,)), f"chat-{i}")


def chat_conversation(chat: TextChat, name: str) -> Conversation:
    """All turns as text."""
    turns = [(Message("human", (turn.question,)), Message("assistant", (turn.answer,))) for turn in chat.turns]
    return Conversation(tuple(itertools.chain.from_iterable(turns)), "chat", name)


def repeat_conversations(pairs: Sequence[TextPair], seed: int, folder: Path = INSTRUCTIONS) -> Iterator[Conversation]:
    """Each pair in the form of a chain, without sound: the question said back, then the answer.

    What an LLM knows when it is asked in text, it then also knows after a transcript of its own.
    """
    for i, pair in enumerate(pairs):
        yield repeat_conversation(pair, i, seed, folder)


def repeat_conversation(pair: TextPair, index: int, seed: int, folder: Path = INSTRUCTIONS) -> Conversation:
    """One of repeat_conversations."""
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
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for index, line in enumerate(itertools.islice(file, self.rows), self.first):
                try:
                    yield index, parse_chat(line.decode(), "no chat")
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
    """A whole text set whose families are balanced (see balance_families), as chats, then as the task repeat."""

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
        pairs = balance_families(read_pairs(self.path), self.least, self.most, self.seed)
        sides = [self.splits.side("", pair.question) for pair in pairs]
        yield from zip(sides, chat_conversations(pairs))
        yield from zip(sides, repeat_conversations(pairs, self.seed, self.instructions))


def chat_parts(
    path: Path, task: str, seed: int, splits: Splits, weight: float = 1.0, folder: Path = INSTRUCTIONS
) -> list[ChatPart]:
    """A text set in stretches of 10,000 lines."""
    parts: list[ChatPart] = []
    offset = 0
    with path.open("rb") as file:
        for first in itertools.count(0, PART_LINES):
            sizes = [len(line) for line in itertools.islice(file, PART_LINES)]
            if not sizes:
                return parts
            parts.append(ChatPart(path.resolve(), offset, first, len(sizes), task, seed, splits, weight, folder))
            offset += sum(sizes)
    raise AssertionError("the loop ends with the file")


def read_chats(path: Path, refusals: Refusals) -> Iterator[TextChat]:
    """Stream a text set; a line that is no chat is refused."""
    for part in chat_parts(path, "chat", 0, Splits()):
        for _, chat in part.lines(refusals):
            yield chat
