"""Training examples, from labels, conversation sets, or text sets.

labels            shards of variants.blsp.continuation, or lines of {"audio": .., "text": ..} of the published code
conversations     of instruct_data.build, with text and recordings
text sets         of instruct-sources: {"question": .., "answer": ..}, for stage 1
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from instruct_data.build.records import read_conversations
from instruct_data.text.chats import read_chats
from speechgpt.dialogue import Speech
from units.corpus.manifest import Utterance
from units.runtime.refusals import Refusals
from variants.blsp.data.labels import Label, read_labels
from variants.speech_in.examples import Example, first_fields, of_chat, of_conversation
from variants.speech_in.hearing import transcripts

Form = Literal["labels", "conversations", "chats"]


def form_of(path: Path) -> Form:
    """What a source holds, by its first line.

    Raises: ValueError if it is none of the three forms.
    """
    if path.is_dir():
        return "labels"
    fields = first_fields(path)
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
        yield from (of_conversation(one, path.parent) for one in conversations)
    else:
        refusals = Refusals()
        yield from (of_chat(chat) for chat in read_chats(path, refusals))
        if refusals.counts:
            print(f"{path}: {refusals}", flush=True)


def transcripts_of(path: Path) -> Iterator[tuple[Speech, str | None]]:
    """Recordings and what is said in each, if it is known: of labels, or of any source of `utterances_of`."""
    if path.is_dir() or "response" in first_fields(path):
        return ((label.speech, label.transcript) for label in read_labels(path))
    return ((Speech(str(one.audio), one.start, one.duration), one.text) for one in utterances_of(path))


def utterances_of(path: Path) -> list[Utterance]:
    """As variants.speech_in.hearing.transcripts.utterances_of; also reads the published code's lines of audio and text,
    whose text is a transcript here."""
    if transcripts.is_json_lines(path):
        fields = first_fields(path)
        if "audio" in fields and not fields & {"id", "format"}:
            found = [transcripts.utterance_of(one.id, one.speech, one.response) for one in read_labels(path)]
            return transcripts.unique(found, path)
    return transcripts.utterances_of(path)


def _of_label(label: Label, instruction: str) -> Example:
    known = {} if label.transcript is None else {label.speech: label.transcript}
    return Example(label.behaviour, label.messages(instruction), known)
