"""Conversation sets on disk: `*.jsonl` or `*.jsonl.gz` with a header line, then one conversation a line.

    {"format": "conversations/2", "codebook": {...} or null, "seed": 0, "counts": {"asr": 2, "tts": 1}}
    {"id": "q1", "task": "asr", "messages": [{"role": "human", "parts": [{"text": ".."}, {"units": [1, 2]}]}, ...]}

A part of a message is one of these:

    {"text": "what is two plus two"}
    {"units": [12, 7, 7]}
    {"speech": "wav/q1.wav", "start": 0.5, "duration": 1.5, "units": [12, 7, 7]}

`speech` is an audio file; its path is absolute or relative to the folder of the set. `start` and `duration` are seconds
(absent: from the beginning, to the end). `units` are those of the speech, if known. `codebook` is null where no
part has units. A message of an assistant that is one half of a chain says what is learned of it:

    {"role": "assistant", "parts": [{"text": "what is two plus two"}], "learned": "transcript"}
    {"role": "assistant", "parts": [{"text": "what is two plus two"}, {"text": "that makes four"}], "learned": "answer"}

Release 0.1.0 wrote `conversations/1`, which has no speech parts and no halves; it is read as well.
"""

from __future__ import annotations

import gzip
import json
import math
import shutil
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechgpt.dialogue import Conversation, Message, Part, Speech
from units.codebook import Codebook
from units.runtime.files.gzipped import opened, opened_to_write

FORMAT = "conversations/2"
READABLE_FORMATS = ("conversations/1", FORMAT)
_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError)


class RecordError(ValueError):
    """A line that is not a header or a conversation; the message begins with FILE:LINE."""


@dataclass(frozen=True)
class RecordSet:
    """A set on disk: a header line, then one record a line.

    path: the file. codebook: of its units, None if it has none. seed: of the run that made it. counts: records by task.
    """

    path: Path
    codebook: Codebook | None
    seed: int
    counts: dict[str, int]

    def __len__(self) -> int:
        return sum(self.counts.values())


class ConversationSet(RecordSet):
    """A conversation set on disk; iterating streams its conversations."""

    def __iter__(self) -> Iterator[Conversation]:
        for where, line in record_lines(self.path, len(self), "conversations"):
            yield parse_conversation(line, where, self.codebook)

    def audio_path(self, speech: Speech) -> Path:
        """The audio file of a speech part of this set."""
        return self.path.parent / speech.audio


def read_conversations(path: str | Path) -> ConversationSet:
    """Open a conversation set and check its header.

    Raises:
        FileNotFoundError: there is no such file.
        RecordError: the first line is not a header.
    """
    return ConversationSet(Path(path), *read_header(path, READABLE_FORMATS, "a conversation set"))


def write_conversations(
    path: str | Path, conversations: Iterable[Conversation], codebook: Codebook | None, seed: int
) -> dict[str, int]:
    """Stream conversations to a set, compressed if its name ends in .gz. The file appears whole or not at all.

    Returns: conversations by task.
    """
    return write_records(path, ((one.task, conversation_line(one)) for one in conversations), codebook, seed, FORMAT)


def write_records(
    path: str | Path, records: Iterable[tuple[str, bytes]], codebook: Codebook | None, seed: int, format: str
) -> dict[str, int]:
    """Stream records to a set, compressed if its name ends in .gz. The file appears whole or not at all.

    Args:
        records: task and line of each.
        format: of the set, for its header.

    Returns: records by task.
    """
    path = Path(path)
    counts: Counter[str] = Counter()
    body = path.with_name(f".{path.name}.body")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with body.open("wb") as file:
            for task, line in records:
                counts[task] += 1
                file.write(line)
        with opened_to_write(path) as out:
            out.write(header_line(codebook, seed, counts, format))
            with body.open("rb") as file:
                shutil.copyfileobj(file, out)
    finally:
        body.unlink(missing_ok=True)
    return dict(counts)


def record_lines(path: Path, count: int, what: str) -> Iterator[tuple[str, str]]:
    """FILE:LINE and text of each line behind a set's header.

    Args:
        count: lines that the header states. what: they are, for errors.

    Raises:
        RecordError: the file is damaged, or has more or fewer lines.
    """
    number = 1
    with opened(path) as lines:
        try:
            next(lines)
            for number, line in enumerate(lines, 2):
                yield f"{path}:{number}", line
        except _DAMAGE as error:
            raise RecordError(f"{path}:{number + 1}: the file is cut short or damaged ({error})") from error
    if number - 1 != count:
        raise RecordError(f"{path}: {number - 1} {what}, but its header counts {count}; the file is cut short")


# --- the header


def header_line(codebook: Codebook | None, seed: int, counts: Mapping[str, int], format: str = FORMAT) -> bytes:
    """The first line of a set."""
    header = {
        "format": format,
        "codebook": json.loads(codebook.to_json()) if codebook else None,
        "seed": seed,
        "counts": dict(sorted(counts.items())),
    }
    return (json.dumps(header, ensure_ascii=False) + "\n").encode()


def read_header(path: str | Path, formats: Sequence[str], what: str) -> tuple[Codebook | None, int, dict[str, int]]:
    """Codebook, seed and counts of a set.

    Args:
        formats: that are read. what: the set is, for errors.

    Raises:
        FileNotFoundError: there is no such file.
        RecordError: the first line is not a header of these formats.
    """
    with opened(Path(path)) as lines:
        try:
            return _parse_header(next(lines, ""), formats)
        except (ValueError, RecursionError, *_DAMAGE) as error:
            raise RecordError(f"{path}:1: not the header of {what}: {error}") from error


def format_of(path: str | Path) -> str | None:
    """The format that the first line of a set names; None if that is no header."""
    with opened(Path(path)) as lines:
        try:
            header = json.loads(next(lines, ""))
        except (ValueError, RecursionError, *_DAMAGE):
            return None
    return header.get("format") if isinstance(header, dict) else None


def _parse_header(line: str, formats: Sequence[str]) -> tuple[Codebook | None, int, dict[str, int]]:
    """Codebook, seed and counts. Raises ValueError; its message names the field that is wrong."""
    header = json.loads(line)
    if not isinstance(header, dict):
        raise ValueError(f"{line[:60]!r} is not an object")
    if header.get("format") not in formats:
        raise ValueError(f"format is {header.get('format')!r}; it must be one of {', '.join(formats)}")
    if missing := {"codebook", "seed", "counts"} - header.keys():
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    counts = header["counts"]
    if not isinstance(counts, dict) or not all(type(count) is int and count >= 0 for count in counts.values()):
        raise ValueError(f"counts is {str(counts)[:60]}; it must be a number of conversations for each task")
    if type(header["seed"]) is not int:
        raise ValueError(f"seed is {str(header['seed'])[:60]}; it must be a whole number")
    try:
        codebook = Codebook.from_json(header["codebook"]) if header["codebook"] else None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"codebook is {str(header['codebook'])[:60]} ({error})") from error
    return codebook, header["seed"], counts


# --- a conversation


def conversation_line(conversation: Conversation) -> bytes:
    """One line of a set; inverse of parse_conversation."""
    return (json.dumps(conversation_record(conversation), ensure_ascii=False) + "\n").encode()


def conversation_record(conversation: Conversation) -> dict[str, Any]:
    """A conversation as JSON values."""
    messages = [message_record(message) for message in conversation.messages]
    return {"id": conversation.id, "task": conversation.task, "messages": messages}


def message_record(message: Message) -> dict[str, Any]:
    """A message as JSON values; inverse of parse_message."""
    record = {"role": message.role, "parts": [_part_record(part) for part in message.parts]}
    return record if message.learned == "all" else record | {"learned": message.learned}


def _part_record(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"text": part}
    if not isinstance(part, Speech):
        return {"units": list(part)}
    record: dict[str, Any] = {"speech": part.audio}
    if part.start:
        record["start"] = part.start
    if part.duration is not None:
        record["duration"] = part.duration
    if part.units is not None:
        record["units"] = list(part.units)
    return record


def parse_conversation(line: str, where: str, codebook: Codebook | None) -> Conversation:
    """Read one line strictly. Paths of audio files stay as they are written (see ConversationSet.audio_path).

    Args:
        line: a conversation as JSON.
        where: FILE:LINE, for errors.
        codebook: of the set; None if it has no units.

    Raises:
        RecordError: the line is not a conversation.
    """
    try:
        record = json.loads(line)
        _check_fields(record)
        messages = tuple(parse_message(message, codebook) for message in record["messages"])
        return Conversation(messages, record["task"], record["id"])
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise RecordError(f"{where}: {error}") from error


def _check_fields(record: Any) -> None:
    if not isinstance(record, dict):
        raise ValueError(f"{str(record)[:60]} is not a conversation, which has the fields id, messages, task")
    if set(record) != {"id", "task", "messages"}:
        raise ValueError(f"the fields are {sorted(record)}; they must be id, messages, task")
    for name, kind in (("id", str), ("task", str), ("messages", list)):
        if not isinstance(record[name], kind):
            raise ValueError(f"{name} is {str(record[name])[:60]!r}; it must be a {kind.__name__}")


def parse_message(message: Any, codebook: Codebook | None) -> Message:
    """Read a message strictly. Raises ValueError if it is none."""
    if not isinstance(message, dict) or set(message) - {"learned"} != {"role", "parts"}:
        raise ValueError(f"a message has the fields parts and role, perhaps learned; this one is {str(message)[:60]}")
    parts = tuple(_parse_part(part, codebook) for part in message["parts"])
    return Message(message["role"], parts, message.get("learned", "all"))


def _parse_part(part: Any, codebook: Codebook | None) -> Part:
    fields = set(part) if isinstance(part, dict) else set()
    if fields == {"text"} and isinstance(part["text"], str):
        return part["text"]
    if fields == {"units"} and isinstance(part["units"], list):
        return _parse_units(part["units"], codebook)
    if "speech" in fields and fields <= {"speech", "start", "duration", "units"}:
        return _parse_speech(part, codebook)
    raise ValueError(f'a part is {{"text": ".."}}, {{"units": [..]}} or {{"speech": "FILE", ..}}, not {str(part)[:60]}')


def _parse_speech(part: dict[str, Any], codebook: Codebook | None) -> Speech:
    audio, start, duration = part["speech"], part.get("start", 0.0), part.get("duration")
    if not isinstance(audio, str) or not audio or "\0" in audio:
        raise ValueError(f"speech is {str(audio)[:60]!r}; it must be the path of an audio file")
    if not _is_number(start) or start < 0:
        raise ValueError(f"start is {start!r}; it must be a number of seconds, 0 or more")
    if duration is not None and (not _is_number(duration) or duration <= 0):
        raise ValueError(f"duration is {duration!r}; it must be a number of seconds above 0")
    units = part.get("units")
    if units is not None and not isinstance(units, list):
        raise ValueError(f"units is {str(units)[:60]!r}; it must be a list")
    known = None if units is None else _parse_units(units, codebook)
    return Speech(audio, float(start), None if duration is None else float(duration), known)


def _parse_units(units: list[Any], codebook: Codebook | None) -> tuple[int, ...]:
    if codebook is None:
        raise ValueError("units in a set whose header names no codebook")
    if not all(type(unit) is int and 0 <= unit < codebook.size for unit in units):
        raise ValueError(f"units must be whole numbers from 0 to {codebook.size - 1}")
    return tuple(units)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
