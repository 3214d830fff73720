"""Training examples of conversation sets and text sets, with what is known of their recordings.

conversations     of instruct_data.build, with text, recordings, and units of replies
text sets         of instruct-sources: {"question": .., "answer": ..}
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from instruct_data.text.chats import TextChat, TextPair
from speechgpt.dialogue import Conversation, Message, Reply, Speech
from units.runtime.files.gzipped import opened
from units.runtime.files.json_files import BOM, FileError, FileReason


@dataclass(frozen=True)
class Example:
    """A conversation to learn. Paths of its recordings are absolute, or relative to the working folder.

    transcripts: of recordings in it, where they are known.
    """

    task: str
    messages: tuple[Message, ...]
    transcripts: Mapping[Speech, str] = field(default_factory=dict)

    @property
    def sounds(self) -> list[Speech]:
        """Its recordings, in order."""
        human = [message for message in self.messages if message.role == "human"]
        return [part for message in human for part in message.parts if isinstance(part, Speech)]


def first_fields(path: Path) -> set[str]:
    """The fields of the first record of a file of JSON lines, which may be compressed; none if it is no JSON object.

    Raises: FileError if the file is compressed and damaged.
    """
    try:
        with opened(path, "rb") as lines:
            first = next((line for line in lines if line.removeprefix(BOM).strip()), b"").removeprefix(BOM)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FileError(FileReason.DAMAGED, f"{path}: damaged or cut short ({error})") from error
    try:
        record = json.loads(first)
    except (ValueError, RecursionError):  # the reader of the form says what is wrong with the line
        return set()
    return set(record) if isinstance(record, dict) else set()


def of_conversation(conversation: Conversation, folder: Path) -> Example:
    """A conversation. A reply that begins with a transcript gives it to the question before it; that of asr is one.

    Raises: ValueError if it is one half of a chain.
    """
    if any(message.learned != "all" for message in conversation.messages):
        raise ValueError(
            f"{conversation.id} is one half of a chain, as SpeechGPT learns it; leave chain_halves out of this data"
        )
    messages = tuple(_located(message, folder) for message in conversation.messages)
    transcripts: dict[Speech, str] = {}
    for asked, answered in zip(messages[::2], messages[1::2]):
        sounds = [part for part in asked.parts if isinstance(part, Speech)]
        reply = Reply.from_parts(answered.parts)
        transcript = reply.text if conversation.task == "asr" else reply.transcript
        if len(sounds) == 1 and transcript:
            transcripts[sounds[0]] = transcript
    return Example(conversation.task, messages, transcripts)


def _located(message: Message, folder: Path) -> Message:
    if message.role != "human":
        return message
    return Message("human", tuple(_in(folder, part) if isinstance(part, Speech) else part for part in message.parts))


def _in(folder: Path, speech: Speech) -> Speech:
    return Speech(str(folder / speech.audio), speech.start, speech.duration)


def of_chat(chat: TextChat | TextPair) -> Example:
    turns = (chat,) if isinstance(chat, TextPair) else chat.turns
    messages: list[Message] = []
    for turn in turns:
        messages += [Message("human", (turn.question,)), Message("assistant", (turn.answer,))]
    return Example("chat", tuple(messages))
