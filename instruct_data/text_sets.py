"""Text question and answer sets: plain jsonl with `question` and `answer`, other fields kept as they are."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from instruct_data.cross_modal import read_instructions
from speechgpt.dialogue import INPUT_FOLLOWS, Conversation, Message


@dataclass(frozen=True)
class TextPair:
    """A question and its answer; `split` and `family` where the set has them."""

    question: str
    answer: str
    split: str = "train"
    family: str = ""


def read_pairs(path: str | Path) -> list[TextPair]:
    """Read a jsonl of pairs.

    Raises: ValueError naming the line that is no JSON, or lacks a question or an answer.
    """
    with Path(path).open(encoding="utf-8") as lines:
        return [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]


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


def chat_conversations(pairs: list[TextPair]) -> Iterator[Conversation]:
    """Each pair as a text chat."""
    for i, pair in enumerate(pairs):
        messages = (Message("human", (pair.question,)), Message("assistant", (pair.answer,)))
        yield Conversation(messages, "chat", f"chat-{i}")


def repeat_conversations(pairs: list[TextPair], seed: int) -> Iterator[Conversation]:
    """Each pair in the form of a chain, without sound: the question said back, then the answer.

    What an LLM knows when it is asked in text, it then also knows after a transcript of its own.
    """
    descriptions = read_instructions("repeat")
    for i, pair in enumerate(pairs):
        description = random.Random(f"{seed} repeat {i} {pair.question}").choice(descriptions)
        human = Message("human", (f"{description} {INPUT_FOLLOWS} {pair.question}",))
        yield Conversation((human, Message("assistant", (pair.question, pair.answer))), "repeat", f"repeat-{i}")
