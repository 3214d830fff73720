"""Text question and answer sets: plain jsonl with `question` and `answer`, other fields kept as they are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from speechgpt.dialogue import Conversation, Message


@dataclass(frozen=True)
class TextPair:
    """A question and its answer; `split` and `family` where the set has them."""

    question: str
    answer: str
    split: str = "train"
    family: str = ""


def read_pairs(path: str | Path) -> list[TextPair]:
    """Read a jsonl of pairs.

    Raises: ValueError naming the line that lacks a question or an answer.
    """
    pairs = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        record = json.loads(line)
        if not (record.get("question") and record.get("answer")):
            raise ValueError(f"{path}:{number}: needs a question and an answer, has {sorted(record)}")
        pairs.append(
            TextPair(record["question"], record["answer"], record.get("split", "train"), record.get("family", ""))
        )
    return pairs


def chat_conversations(pairs: list[TextPair]) -> Iterator[Conversation]:
    """Each pair as a text chat."""
    for i, pair in enumerate(pairs):
        messages = (Message("human", (pair.question,)), Message("assistant", (pair.answer,)))
        yield Conversation(messages, "chat", f"chat-{i}")
