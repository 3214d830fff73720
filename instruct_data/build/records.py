"""Conversations on disk: `*.jsonl` or `*.jsonl.gz`, a header line, then one conversation a line.

{"format": "conversations/1", "codebook": {...} or null, "seed": 0, "counts": {"asr": 2, "tts": 1}}
{"id": "q1", "task": "asr", "messages": [{"role": "human", "parts": [{"text": ".."}, {"units": [1, 2]}]}, ...]}
"""

from __future__ import annotations

import gzip
import json
import shutil
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechgpt.dialogue import Conversation, Message, Part
from units.codebook import Codebook
from units.runtime.gzipped import opened, opened_to_write

FORMAT = "conversations/1"


class RecordError(ValueError):
    """A line that is no conversation; the message says which line and why."""


@dataclass(frozen=True)
class ConversationSet:
    """A set on disk. Iterating streams its conversations. codebook is None if no conversation holds units."""

    path: Path
    codebook: Codebook | None
    seed: int
    counts: dict[str, int]

    def __iter__(self) -> Iterator[Conversation]:
        number = 1
        with opened(self.path) as lines:
            try:
                next(lines)
                for number, line in enumerate(lines, 2):
                    yield parse_conversation(line, f"{self.path}:{number}", self.codebook)
            except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
                raise RecordError(f"{self.path}:{number + 1}: the file was cut short or damaged ({error})") from error
        if number - 1 != len(self):
            raise RecordError(
                f"{self.path}: {number - 1} conversations, but its header counts {len(self)}: it was cut short"
            )

    def __len__(self) -> int:
        return sum(self.counts.values())


def read_conversations(path: str | Path) -> ConversationSet:
    """Open a set and check its header.

    Raises: FileNotFoundError; RecordError if the header is not one.
    """
    path = Path(path)
    with opened(path) as lines:
        try:
            header = json.loads(next(lines))
            if header["format"] != FORMAT:
                raise KeyError(header["format"])
            codebook = Codebook.from_json(header["codebook"]) if header["codebook"] else None
            return ConversationSet(path, codebook, header["seed"], header["counts"])
        except (StopIteration, ValueError, KeyError, TypeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise RecordError(f"{path}:1: not the header of a conversation set ({FORMAT}): {error!r}") from error


def write_conversations(
    path: str | Path, conversations: Iterable[Conversation], codebook: Codebook | None, seed: int
) -> dict[str, int]:
    """Stream conversations to a set, compressed if the name ends in .gz. Appears whole or not at all.

    Returns: how many of each task.
    """
    path = Path(path)
    counts: Counter[str] = Counter()
    body = path.with_name(f".{path.name}.body")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with body.open("wb") as file:
            for conversation in conversations:
                counts[conversation.task] += 1
                file.write(conversation_line(conversation))
        with opened_to_write(path) as out:
            out.write(header_line(codebook, seed, counts))
            with body.open("rb") as file:
                shutil.copyfileobj(file, out)
    finally:
        body.unlink(missing_ok=True)
    return dict(counts)


def header_line(codebook: Codebook | None, seed: int, counts: Mapping[str, int]) -> bytes:
    """The first line of a set."""
    header = {"format": FORMAT, "codebook": json.loads(codebook.to_json()) if codebook else None, "seed": seed,
              "counts": dict(sorted(counts.items()))}  # fmt: skip
    return (json.dumps(header, ensure_ascii=False) + "\n").encode()


def conversation_line(conversation: Conversation) -> bytes:
    """One line of a set; parse_conversation reads it back."""
    return (json.dumps(conversation_record(conversation), ensure_ascii=False) + "\n").encode()


def conversation_record(conversation: Conversation) -> dict[str, Any]:
    """The JSON form; inverse of parse_conversation."""
    messages = [
        {"role": m.role, "parts": [{"text": p} if isinstance(p, str) else {"units": list(p)} for p in m.parts]}
        for m in conversation.messages
    ]
    return {"id": conversation.id, "task": conversation.task, "messages": messages}


def parse_conversation(line: str, where: str, codebook: Codebook | None) -> Conversation:
    """Read one line strictly. Raises RecordError beginning with `where`."""
    try:
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError(f"{str(record)[:60]} is no conversation, which has the fields id, messages, task")
        if set(record) != {"id", "task", "messages"}:
            raise ValueError(f"the fields are {sorted(record)}; they must be id, messages, task")
        for name, kind in (("id", str), ("task", str), ("messages", list)):
            if not isinstance(record[name], kind):
                raise ValueError(f"{name} is {str(record[name])[:60]!r}; it must be a {kind.__name__}")
        messages = []
        for message in record["messages"]:
            if not isinstance(message, dict) or set(message) != {"role", "parts"}:
                raise ValueError(f"a message has the fields parts and role; this one is {str(message)[:60]}")
            messages.append(Message(message["role"], tuple(_part(part, codebook) for part in message["parts"])))
        return Conversation(tuple(messages), record["task"], record["id"])
    except (ValueError, TypeError, AttributeError) as error:
        raise RecordError(f"{where}: {error}") from error


def _part(part: Any, codebook: Codebook | None) -> Part:
    if isinstance(part, dict) and set(part) == {"text"} and isinstance(part["text"], str):
        return part["text"]
    if isinstance(part, dict) and set(part) == {"units"} and isinstance(part["units"], list):
        if codebook is None:
            raise ValueError("units in a set whose header names no codebook")
        units = tuple(part["units"])
        if not all(type(u) is int and 0 <= u < codebook.size for u in units):
            raise ValueError(f"units must be whole numbers from 0 to {codebook.size - 1}")
        return units
    raise ValueError(f'a part is {{"text": ".."}} or {{"units": [..]}}, not {str(part)[:60]}')
