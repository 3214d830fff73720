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
from speechgpt.dialogue import Message, Speech
from units.corpus.manifest import CorpusReason, ManifestError, Utterance, has_word
from units.corpus.sources import list_source
from units.runtime.refusals import Refusals
from variants.blsp.data.labels import Label, read_labels
from variants.speech_in.examples import Example, first_fields, of_chat, of_conversation

Form = Literal["labels", "conversations", "chats"]
TRANSCRIPT = "transcript"  # task of the examples of kind ctc


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


def read_transcripts(path: Path) -> Iterator[Example]:
    """Recordings with their transcripts, each once: what is said in them is to be heard.

    Args:
        path: labels with transcripts, or any source of `utterances_of`. Recordings without a transcript, or with one
            that has no word, are left out.
    """
    seen: set[Speech] = set()
    for sound, text in _transcripts(path):
        if text and has_word(text) and sound not in seen:
            seen.add(sound)
            yield Example(TRANSCRIPT, (Message("human", (sound,)),), {sound: text.strip()})


def _transcripts(path: Path) -> Iterator[tuple[Speech, str | None]]:
    if path.is_dir() or "response" in first_fields(path):
        yield from ((label.speech, label.transcript) for label in read_labels(path))
        return
    for one in utterances_of(path):
        yield Speech(str(one.audio), one.start, one.duration), one.text


def utterances_of(path: Path) -> list[Utterance]:
    """The recordings of a source with their transcripts, where these are known.

    Args:
        path: any source of units.corpus.sources, the published code's lines of audio and text, or a conversation set.

    Raises: ValueError if a line is of no form that is read, or an id occurs twice.
    """
    if path.suffix != ".jsonl" and not path.name.endswith(".jsonl.gz"):
        return list_source(path).utterances
    fields = first_fields(path)
    if "format" in fields:
        return _unique(_spoken(path), path)
    if "audio" in fields and "id" not in fields:  # the published code's lines, whose text is a transcript here
        return _unique([_utterance(label.id, label.speech, label.response) for label in read_labels(path)], path)
    return list_source(path).utterances


def _unique(utterances: list[Utterance], path: Path) -> list[Utterance]:
    """The utterances. Raises ManifestError if an id occurs twice."""
    seen: set[str] = set()
    for one in utterances:
        if one.id in seen:
            raise ManifestError(CorpusReason.SAME_ID, f"{path}: the id {one.id!r} is used twice; ids are unique")
        seen.add(one.id)
    return utterances


def _spoken(path: Path) -> list[Utterance]:
    found: list[Utterance] = []
    for conversation in read_conversations(path):
        example = of_conversation(conversation, path.parent)
        for place, sound in enumerate(example.sounds):
            found.append(_utterance(f"{conversation.id}-{place}", sound, example.transcripts.get(sound)))
    return found


def _utterance(id: str, speech: Speech, text: str | None) -> Utterance:
    return Utterance(id, Path(speech.audio), speech.start, speech.duration, text)


def _of_label(label: Label, instruction: str) -> Example:
    known = {} if label.transcript is None else {label.speech: label.transcript}
    return Example(label.behaviour, label.messages(instruction), known)
