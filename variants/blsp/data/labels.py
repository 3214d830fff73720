"""Labels: what the LLM itself wrote about a transcript, to be learned from the recording of it. JSON lines:

    {"id": "q1", "audio": "wav/q1.wav", "transcript": "the weather was cold", "behaviour": "continue",
     "instruction": "Continue the following text ..", "response": "and the river froze."}

`start` and `duration` are seconds, as in a manifest; `audio` is relative to the file's folder. Rows of the published
code are read too: {"audio": "file.wav:start:frames", "text": response}, with start and frames in samples of the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechgpt.dialogue import Message, Speech
from units.corpus.manifest import is_plain_text, is_seconds, path_from
from units.runtime.files.atomic import written_whole
from units.runtime.files.json_files import json_lines

COMPLETION_FILE = "labels.json"  # of a folder of shards: written last
SPAN = re.compile(r"(.*):(\d+):(\d+)")
FIELDS = ("id", "audio", "response")


class LabelError(ValueError):
    """A line that is not a label; the message begins with FILE:LINE."""


@dataclass(frozen=True)
class Label:
    """One response to learn.

    transcript: of the recording; None where it is not known. instruction: None where the reader decides it.
    """

    id: str
    speech: Speech
    response: str
    behaviour: str = "continue"
    instruction: str | None = None
    transcript: str | None = None

    def messages(self, instruction: str) -> tuple[Message, Message]:
        """As a conversation.

        Args:
            instruction: used where the label has none.
        """
        chosen = instruction if self.instruction is None else self.instruction
        parts = (chosen, self.speech) if chosen else (self.speech,)
        return Message("human", parts), Message("assistant", (self.response,))

    def line(self, folder: Path) -> str:
        """As a line of a file in `folder`."""
        record: dict[str, Any] = {"id": self.id, "audio": path_from(folder, Path(self.speech.audio))}
        record |= {"start": self.speech.start} if self.speech.start else {}
        record |= {"duration": self.speech.duration} if self.speech.duration is not None else {}
        record |= {"transcript": self.transcript, "behaviour": self.behaviour, "instruction": self.instruction}
        record["response"] = self.response
        return json.dumps({name: value for name, value in record.items() if value is not None}) + "\n"


def label_files(path: Path) -> list[Path]:
    """The files of a set of labels: the shards of a folder, or the file itself.

    Raises: FileNotFoundError if a folder is not complete.
    """
    if not path.is_dir():
        return [path]
    if not (path / COMPLETION_FILE).exists():
        raise FileNotFoundError(f"{path} has no {COMPLETION_FILE}: its labels are not complete; run the command again")
    return sorted(path.glob("shard-*.jsonl"))


def read_labels(path: Path) -> Iterator[Label]:
    """Stream labels; their audio paths are made absolute, or relative to the working folder.

    Raises: FileError for a line that is not JSON; LabelError for one that is not a label.
    """
    for file in label_files(path):
        for number, record in json_lines(file):
            yield label_of(record, f"{file}:{number}", file.parent)


def label_of(record: dict[str, Any], where: str, folder: Path) -> Label:
    """The label in the fields of a line.

    Args:
        where: FILE:LINE. folder: to which paths are relative.

    Raises: LabelError.
    """
    try:
        if "response" not in record and {"audio", "text"} <= record.keys():
            return _published(record, where, folder)
        if missing := [name for name in FIELDS if not isinstance(record.get(name), str)]:
            raise ValueError(f"it has no text in {', '.join(missing)}")
        start, duration = record.get("start", 0.0), record.get("duration")
        if not is_seconds(start) or not (duration is None or is_seconds(duration)):
            raise ValueError(f"start is {start!r:.60} and duration {duration!r:.60}; both are seconds, 0 or more")
        texts = {name: record.get(name) for name in ("behaviour", "instruction", "transcript")}
        _check_texts({**texts, "id": record["id"], "response": record["response"]})
        speech = Speech(str(folder / _path(record["audio"])), float(start), duration)
        behaviour = "continue" if texts["behaviour"] is None else texts["behaviour"]
        return Label(record["id"], speech, record["response"], behaviour, texts["instruction"], texts["transcript"])
    except ValueError as error:
        raise LabelError(f"{where}: not a label: {error}") from error


def _check_texts(texts: dict[str, Any]) -> None:
    """Raise ValueError, with the field, for a value that is no text; None is a field that is not there."""
    for name, text in texts.items():
        if text is not None and not (isinstance(text, str) and is_plain_text(text)):
            raise ValueError(f"{name} is {ascii(text):.60}; it is a string of plain text")


def _path(audio: str) -> str:
    """The path of a recording; its bytes need not be UTF-8. Raises ValueError for one that no file can have."""
    if not audio or "\0" in audio:
        raise ValueError(f"audio is {audio!r:.60}; it is the path of a recording")
    return audio


def _published(record: dict[str, Any], where: str, folder: Path) -> Label:
    if not isinstance(record["audio"], str) or not isinstance(record["text"], str):
        raise ValueError("audio and text must be text")
    _check_texts({"text": record["text"]})
    return Label(where, published_speech(_path(record["audio"]), folder), record["text"])


def published_speech(audio: str, folder: Path) -> Speech:
    """A recording as the published code names it: a file, or `file.wav:start:frames` in samples of the file.

    Raises: ValueError if a segment's file cannot be read.
    """
    span = SPAN.fullmatch(audio)
    if span is None:
        return Speech(str(folder / audio))
    import soundfile

    path = folder / span[1]
    try:
        rate = soundfile.info(str(path)).samplerate
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read as audio ({error})") from error
    return Speech(str(path), int(span[2]) / rate, int(span[3]) / rate)


def write_labels(path: Path, labels: list[Label]) -> None:
    """Write a file of labels, whole or not at all."""
    with written_whole(path) as file:
        file.writelines(label.line(path.parent) for label in labels)
