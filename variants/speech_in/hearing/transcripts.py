"""Recordings and what is said in them: of a manifest, of another source of units-extract, or of a conversation set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from instruct_data.build.records import read_conversations
from speechgpt.dialogue import Message, Speech
from units.corpus.manifest import CorpusReason, ManifestError, Utterance, has_word
from units.corpus.sources import list_source
from variants.speech_in.examples import Example, first_fields, of_conversation

TASK = "transcript"  # of the examples


def is_json_lines(path: Path) -> bool:
    """Whether a source is a file of JSON lines, by its name."""
    return path.suffix == ".jsonl" or path.name.endswith(".jsonl.gz")


def utterances_of(path: Path) -> list[Utterance]:
    """The recordings of a source with their transcripts, where these are known.

    Args:
        path: any source of units.corpus.sources, or a conversation set.

    Raises: ValueError if a line is of no form that is read, or an id occurs twice.
    """
    if is_json_lines(path) and "format" in first_fields(path):
        return unique(_spoken(path), path)
    return list_source(path).utterances


def transcripts_of(path: Path) -> Iterator[tuple[Speech, str | None]]:
    """The recordings of a source of `utterances_of`, and what is said in each, if it is known."""
    for one in utterances_of(path):
        yield Speech(str(one.audio), one.start, one.duration), one.text


def examples_of(transcripts: Iterable[tuple[Speech, str | None]]) -> Iterator[Example]:
    """An example for each recording, once; those without a transcript, or with one without a word, are left out."""
    seen: set[Speech] = set()
    for sound, text in transcripts:
        if text and has_word(text) and sound not in seen:
            seen.add(sound)
            yield Example(TASK, (Message("human", (sound,)),), {sound: text.strip()})


def utterance_of(id: str, speech: Speech, text: str | None) -> Utterance:
    """A recording as a row of a manifest."""
    return Utterance(id, Path(speech.audio), speech.start, speech.duration, text)


def unique(utterances: list[Utterance], path: Path) -> list[Utterance]:
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
            found.append(utterance_of(f"{conversation.id}-{place}", sound, example.transcripts.get(sound)))
    return found
