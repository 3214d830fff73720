"""Training examples, from labels, conversation sets, or text sets.

labels            shards of variants.blsp.continuation, or lines of {"audio": .., "text": ..} of the published code
conversations     of instruct_data.build, with text and recordings
text sets         of instruct-sources: {"question": .., "answer": ..}, for stage 1
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from instruct_data.build.records import read_conversations
from instruct_data.text.chats import TextChat, TextPair, read_chats
from speechgpt.dialogue import Conversation, Message, Reply, Speech
from units.corpus.manifest import Utterance
from units.corpus.sources import list_source
from units.runtime.gzipped import opened
from units.runtime.refusals import Refusals
from variants.blsp.data.labels import Label, label_files, read_labels

Form = Literal["labels", "conversations", "chats"]


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


def form_of(path: Path) -> Form:
    """What a source holds, by its first line.

    Raises: ValueError if it is none of the three forms.
    """
    if path.is_dir():
        return "labels"
    with opened(path) as lines:
        first = next((line for line in lines if line.strip()), "")
    try:
        record = json.loads(first.lstrip("\ufeff"))
        fields = set(record) if isinstance(record, dict) else set()
    except ValueError:
        fields = set()
    if "format" in fields:
        return "conversations"
    if "audio" in fields:
        return "labels"
    if fields & {"question", "turns"}:
        return "chats"
    raise ValueError(
        f"{path}: its first line is neither a label (audio, response), nor the header of a conversation set, nor a "
        "chat (question, answer)"
    )


def read_examples(path: Path, instruction: str) -> Iterator[Example]:
    """Stream the examples of a source.

    Args:
        instruction: for labels that name none.

    Raises: ValueError if the source, or a line of it, is of no form that is read.
    """
    form = form_of(path)
    if form == "labels":
        yield from (_of_label(label, instruction) for label in read_labels(path))
    elif form == "conversations":
        conversations = read_conversations(path)
        yield from (_of_conversation(one, path.parent) for one in conversations)
    else:
        refusals = Refusals()
        yield from (_of_chat(chat) for chat in read_chats(path, refusals))
        if refusals.counts:
            print(f"{path}: {refusals}", flush=True)


def example_files(path: Path, instruction: str) -> list[Path]:
    """All files that decide a source's examples, recordings included."""
    files = label_files(path)
    return [
        *files,
        *sorted({Path(one.audio) for example in read_examples(path, instruction) for one in example.sounds}),
    ]


def utterances_of(path: Path) -> list[Utterance]:
    """The recordings of a source with their transcripts, where these are known.

    Args:
        path: any source of units.corpus.sources, the published code's lines of audio and text, or a conversation set.

    Raises: ValueError if a line is of no form that is read, or an id occurs twice.
    """
    published = False
    if path.suffix != ".jsonl" and not path.name.endswith(".jsonl.gz"):
        return list_source(path).utterances
    with opened(path) as lines:
        first = next((line for line in lines if line.strip()), "{}").lstrip("\ufeff")
        with suppress(ValueError):
            published = isinstance(record := json.loads(first), dict) and "audio" in record and "id" not in record
            if isinstance(record, dict) and "format" in record:
                return _spoken(path)
    if not published:
        return list_source(path).utterances
    labels = read_labels(path)  # their text is a transcript here
    return [_utterance(label.id, label.speech, label.response) for label in labels]


def _spoken(path: Path) -> list[Utterance]:
    found: list[Utterance] = []
    for conversation in read_conversations(path):
        example = _of_conversation(conversation, path.parent)
        for place, sound in enumerate(example.sounds):
            found.append(_utterance(f"{conversation.id}-{place}", sound, example.transcripts.get(sound)))
    return found


def _utterance(id: str, speech: Speech, text: str | None) -> Utterance:
    return Utterance(id, Path(speech.audio), speech.start, speech.duration, text)


def _of_label(label: Label, instruction: str) -> Example:
    known = {} if label.transcript is None else {label.speech: label.transcript}
    return Example(label.behaviour, label.messages(instruction), known)


def _of_conversation(conversation: Conversation, folder: Path) -> Example:
    """A conversation. A reply that begins with a transcript gives it to the question before it; that of asr is one."""
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


def _of_chat(chat: TextChat | TextPair) -> Example:
    turns = (chat,) if isinstance(chat, TextPair) else chat.turns
    messages: list[Message] = []
    for turn in turns:
        messages += [Message("human", (turn.question,)), Message("assistant", (turn.answer,))]
    return Example("chat", tuple(messages))
