"""Preference sets on disk: `*.jsonl` or `*.jsonl.gz` with a header line, then one pair of replies a line.

    {"format": "preferences/1", "codebook": {...} or null, "seed": 0, "counts": {"chain": 2, "tts": 1}}
    {"id": "q1", "task": "chain", "messages": [...], "chosen": [PART, ..], "rejected": [PART, ..], "scores": [0.0, 0.5]}

`messages` are the turns before the reply, as in a conversation set (instruct_data/build/records.py); `chosen` and
`rejected` are the parts of two replies, of which the first is to become the likelier one. Where `messages` is empty,
the two are utterances of units that continue the same beginning, as unit pre-training reads them. `scores` are those by
which the two were told apart, lower is better; the field may be left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instruct_data.build.records import (
    RecordError,
    RecordSet,
    message_record,
    parse_message,
    read_header,
    record_lines,
    write_records,
)
from speechgpt.dialogue import Conversation, Message
from units.codebook import Codebook

FORMAT = "preferences/1"
FIELDS = {"id", "task", "messages", "chosen", "rejected"}


@dataclass(frozen=True)
class Pair:
    """Two replies to one prompt.

    messages: the turns before the reply; the last one is from the human. Empty for two utterances of units.
    chosen, rejected: the two replies; they differ.
    scores: of the chosen and of the rejected reply, lower is better; None if they are not known.
    """

    messages: tuple[Message, ...]
    chosen: Message
    rejected: Message
    task: str = "chain"
    id: str = ""
    scores: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.chosen == self.rejected:
            raise ValueError("the chosen and the rejected reply are the same")
        for reply in (self.chosen, self.rejected):
            if self.messages:
                Conversation((*self.messages, reply))  # raises if the turns do not alternate
            elif len(reply.parts) != 1 or not isinstance(reply.parts[0], tuple):
                raise ValueError("without messages, the chosen and the rejected reply are one part of units each")


class PreferenceSet(RecordSet):
    """A preference set on disk; iterating streams its pairs."""

    def __iter__(self) -> Iterator[Pair]:
        for where, line in record_lines(self.path, len(self), "pairs"):
            yield parse_pair(line, where, self.codebook)


def read_preferences(path: str | Path) -> PreferenceSet:
    """Open a preference set and check its header.

    Raises:
        FileNotFoundError: there is no such file.
        RecordError: the first line is not a header.
    """
    return PreferenceSet(Path(path), *read_header(path, [FORMAT], "a preference set"))


def write_preferences(
    path: str | Path, pairs: Iterable[Pair], codebook: Codebook | None, seed: int = 0
) -> dict[str, int]:
    """Stream pairs to a set, compressed if its name ends in .gz. The file appears whole or not at all.

    Returns: pairs by task.
    """
    return write_records(path, ((pair.task, pair_line(pair)) for pair in pairs), codebook, seed, FORMAT)


def pair_line(pair: Pair) -> bytes:
    """One line of a set; inverse of parse_pair."""
    record: dict[str, Any] = {"id": pair.id, "task": pair.task}
    record["messages"] = [message_record(message) for message in pair.messages]
    record |= {name: message_record(getattr(pair, name))["parts"] for name in ("chosen", "rejected")}
    if pair.scores is not None:
        record["scores"] = list(pair.scores)
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()


def parse_pair(line: str, where: str, codebook: Codebook | None) -> Pair:
    """Read one line strictly.

    Args:
        line: a pair as JSON.
        where: FILE:LINE, for errors.
        codebook: of the set; None if it has no units.

    Raises:
        RecordError: the line is not a pair.
    """
    try:
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError(f"{str(record)[:60]} is not a pair, which has the fields {', '.join(sorted(FIELDS))}")
        if not FIELDS <= record.keys() <= FIELDS | {"scores"}:
            raise ValueError(f"the fields are {sorted(record)}; they must be {', '.join(sorted(FIELDS))}[, scores]")
        for name in FIELDS:
            kind = str if name in ("id", "task") else list
            if not isinstance(record[name], kind):
                raise ValueError(f"{name} is {str(record[name])[:60]!r}; it must be a {kind.__name__}")
        messages = tuple(parse_message(message, codebook) for message in record["messages"])
        chosen, rejected = (_reply(record[name], codebook) for name in ("chosen", "rejected"))
        return Pair(messages, chosen, rejected, record["task"], record["id"], _scores(record.get("scores")))
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise RecordError(f"{where}: {error}") from error


def _reply(parts: list[Any], codebook: Codebook | None) -> Message:
    return parse_message({"role": "assistant", "parts": parts}, codebook)


def _scores(found: Any) -> tuple[float, float] | None:
    if found is None:
        return None
    if not isinstance(found, list) or len(found) != 2 or not all(type(one) in (int, float) for one in found):
        raise ValueError(f"scores are {str(found)[:60]}; they must be two numbers")
    return float(found[0]), float(found[1])
