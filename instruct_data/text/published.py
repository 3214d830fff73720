"""Published formats of text instruction sets: one function a format, from a row to its texts.

Each function returns the texts of a chat in order: question, answer, question, answer, ... It raises RowError for a row
that is not a chat, KeyError where a field is missing, TypeError or AttributeError where a field has another type.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator

from instruct_data.text.reasons import TextReason
from instruct_data.text.rows import Row
from speechgpt.vocab import EOA, EOH, HUMAN
from units.runtime.refusals import Refusals, RefusedError

_HUMAN_ROLES = {"human", "user", "prompter"}
_ASSISTANT_ROLES = {"gpt", "assistant", "chatgpt", "bing", "bard"}
_MOSS_TURN = re.compile(f"{re.escape(HUMAN)}:(.*?){re.escape(EOH)}\\s*\\[MOSS\\]:(.*?){re.escape(EOA)}", re.DOTALL)


class RowError(RefusedError):
    """A row that is not a chat of its format."""


def plain(row: Row) -> list[str]:
    """{"question", "answer"}, or {"turns": [[question, answer], ..]}: the text sets of this project."""
    if "turns" in row:
        return [text for turn in row["turns"] for text in turn]
    return [row["question"], row["answer"]]


def alpaca(row: Row) -> list[str]:
    """{"instruction", "input", "output"} (Taori et al. 2023)."""
    return [_with_input(row["instruction"], row.get("input")), row["output"]]


def dolly(row: Row) -> list[str]:
    """{"instruction", "context", "response"} (databricks-dolly-15k)."""
    return [_with_input(row["instruction"], row.get("context")), row["response"]]


def moss(row: Row) -> list[str]:
    """moss-002-sft-data: `plain_text` with special tokens (the files on the hub), or `chat` turn by turn.

    {"plain_text": "[Human]: ..<eoh> [MOSS]: ..<eoa> [Human]: .."}
    {"chat": {"turn_1": {"Human": "<|Human|>: ..<eoh>", "MOSS": "<|MOSS|>: ..<eom>"}, ..}}
    """
    if "plain_text" in row:
        return [text for turn in _MOSS_TURN.findall(row["plain_text"]) for text in turn]
    turns = sorted(row["chat"].items(), key=lambda item: int(item[0].removeprefix("turn_")))
    texts = [text for _, turn in turns for text in (turn["Human"], turn["MOSS"])]
    return [re.sub(r"^<\|\w+\|>:|<eo[hm]>\s*$|<sup>.*?</sup>", "", text.strip()) for text in texts]


def sharegpt(row: Row) -> list[str]:
    """{"conversations": [{"from": "human", "value": ".."}, ..]}; system messages are left out."""
    return _alternating((turn["from"], turn["value"]) for turn in row["conversations"])


def ultrachat(row: Row) -> list[str]:
    """{"data": [question, answer, ..]}, or the later {"messages": [{"role", "content"}, ..]}."""
    if "data" in row:
        return list(row["data"])
    return _alternating((turn["role"], turn["content"]) for turn in row["messages"])


def openassistant(row: Row) -> list[str]:
    """A message tree {"prompt": {"text", "role", "replies": [..]}}: the path of the best-ranked replies."""
    messages, message = [], row["prompt"]
    while message is not None:
        messages.append((message["role"], message["text"]))
        replies = [reply for reply in message.get("replies") or () if not reply.get("deleted")]
        message = min(replies, key=_rank, default=None)
    return _alternating(messages)


def message_trees(rows: Iterable[tuple[str, Row]], refusals: Refusals) -> Iterator[tuple[str, Row]]:
    """Join OpenAssistant's flat messages (`message_id`, and `parent_id` except in roots) to trees.

    Args:
        rows: (FILE:ROW, message) pairs; the messages of a tree follow one another, as in the released files.
    """
    for _, tree in itertools.groupby(rows, lambda found: found[1].get("message_tree_id")):
        messages = list(tree)
        known = {row.get("message_id"): {**row, "replies": []} for _, row in messages}
        roots = []
        for id, row in messages:
            parent, message = row.get("parent_id"), known[row.get("message_id")]
            if parent is None:
                roots.append((id, {"prompt": message}))
            elif parent in known:
                known[parent]["replies"].append(message)
            else:
                refusals.add(id, TextReason.NO_PARENT, f"there is no message {parent} in this tree")
        yield from roots


def _rank(reply: Row) -> float:
    return float("inf") if reply.get("rank") is None else reply["rank"]


def _with_input(instruction: str, more: str | None) -> str:
    return f"{instruction}\n{more}" if more and more.strip() else instruction


def _alternating(messages: Iterable[tuple[str, str]]) -> list[str]:
    """The texts of (role, text) messages, from the first one of a human on.

    Raises:
        RowError: if a role is unknown, or follows itself.
    """
    texts: list[str] = []
    for role, text in messages:
        if role == "system":
            continue
        if role not in _HUMAN_ROLES | _ASSISTANT_ROLES:
            raise RowError(TextReason.UNKNOWN_ROLE, f"unknown role {role!r}")
        if not texts and role in _ASSISTANT_ROLES:
            continue  # many shared conversations begin in the middle
        if (len(texts) % 2 == 0) != (role in _HUMAN_ROLES):
            raise RowError(TextReason.ROLES_DO_NOT_ALTERNATE, f"message {len(texts) + 1} is of {role!r} again")
        texts.append(text)
    return texts


FORMATS: dict[str, Callable[[Row], list[str]]] = {
    "plain": plain,
    "alpaca": alpaca,
    "moss": moss,
    "sharegpt": sharegpt,
    "dolly": dolly,
    "openassistant": openassistant,
    "ultrachat": ultrachat,
}
