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
        return [text for turn in _listed(row["turns"]) for text in _pair(turn)]
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
        return _listed(row["data"])
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
        known: dict[str, Row] = {}
        places: dict[str, str] = {}  # message id -> FILE:ROW
        for place, row in tree:
            try:
                name = _message_name(row)
                if name in known:
                    raise RowError(TextReason.SAME_ID, f"another message of this tree has the id {name!r}")
            except RowError as error:
                refusals.add(place, error)
            else:
                known[name], places[name] = {**row, "replies": []}, place
        roots = [name for name, message in known.items() if message.get("parent_id") is None]
        for message in known.values():
            if message.get("parent_id") in known:
                known[message["parent_id"]]["replies"].append(message)
        reached = _reached(known[name] for name in roots)
        for name, message in known.items():
            if name not in reached:
                detail = (
                    f"no chain of parents leads from it to the root of this tree; its parent is {message['parent_id']}"
                )
                refusals.add(places[name], TextReason.NO_PARENT, detail)
        yield from ((places[name], {"prompt": known[name]}) for name in roots)


def _message_name(row: Row) -> str:
    """The id of a flat message. Raises RowError if it, or that of the parent, is not text."""
    name, parent = row.get("message_id"), row.get("parent_id")
    if name is None:
        raise RowError(TextReason.MISSING_FIELD, "the field 'message_id' is missing")
    if not isinstance(name, str) or not isinstance(parent, str | None):
        message = f"message_id and parent_id are text, not {str(name)[:60]} and {str(parent)[:60]}"
        raise RowError(TextReason.WRONG_TYPE, message)
    return name


def _reached(roots: Iterable[Row]) -> set[str]:
    """The ids of messages and of all replies below them."""
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        message = waiting.pop()
        found.add(message["message_id"])
        waiting += message["replies"]
    return found


def _listed(value: object) -> list:
    """A list as it is. Raises TypeError for another value: a string would be read letter by letter."""
    if not isinstance(value, list):
        raise TypeError(f"{str(value)[:60]!r} is not a list")
    return value


def _pair(turn: object) -> list:
    """The question and the answer of a turn. Raises TypeError if it is not a list of two."""
    if len(_listed(turn)) != 2:
        raise TypeError(f"a turn is [question, answer], not {str(turn)[:60]}")
    return _listed(turn)


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
