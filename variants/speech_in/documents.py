"""Token rows of examples, with places for speech, and side columns that say what stands there.

| column | rows of a document | what |
|---|---|---|
| `places` | M of all its sounds | where each embedding stands in the document |
| `frames` | one a sound | frames N of its encoder states |
| `states` | N of all its sounds | encoder states, float16 (D,), for features: cached |
| `rows` | one a sound | where its states lie in a feature set: shard and first row, for features: FOLDER |
| `audio` | bytes | paths of its recordings, joined by NUL, for features: live |
| `span` | one a sound | start and duration in seconds, -1 for all, for features: live |
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from speechgpt.dialogue import Speech
from stages.system import Column, Documents
from units.audio import AudioReason
from units.corpus.decoding import decoded
from units.corpus.manifest import Utterance, has_word
from units.dataset.feature_set import FeatureSet, halves
from units.encoder.unit_encoder import Features
from units.runtime.refusals import Reason, Refusal, Refusals, RefusedError
from variants.listening import Piece, Row, row
from variants.speech_in.examples import Example
from variants.speech_in.templates import Template

DOCUMENTS_VERSION = 1  # for caches of tokens: raise it when this file gives other documents
TOGETHER = 32  # examples whose recordings are encoded at once
MOST_THREADS = 4  # that decode recordings ahead
TO_THE_END = -1.0  # seconds: the duration of a segment that ends with its file


class ExampleReason(Reason):
    """Why an example is left out of training."""

    UNREADABLE = "unreadable_audio"
    """a recording of it cannot be read"""
    SILENT = "silent_audio"
    """a recording of it is silent"""
    NO_WORD = "no_word"
    """a text of it has no word"""


class AdapterShape(Protocol):
    """The shape of an adapter."""

    def embeddings(self, frames: int) -> int:
        """How many embeddings M a sound of so many frames gives."""


class Writer:
    """Turns examples into documents."""

    def __init__(
        self, template: Template, encoder: Features | FeatureSet, shape: AdapterShape, pad: int, live: bool
    ) -> None:
        """
        Args:
            encoder: the encoder, or its states of all recordings.
            pad: the token at places for speech.
            live: keep where recordings lie, instead of their encoder states.
        """
        self.template, self.encoder, self.shape, self.pad, self.live = template, encoder, shape, pad, live
        self._encoded: dict[Speech, np.ndarray] = {}

    def documents(self, examples: Iterable[Example], refusals: Refusals) -> Iterator[Documents]:
        """One document for each example whose recordings can be read."""
        iterator = iter(examples)
        while some := list(itertools.islice(iterator, TOGETHER)):
            yield from self._written([one for one in some if _has_words(one, refusals)], refusals)

    def _written(self, examples: list[Example], refusals: Refusals) -> Iterator[Documents]:
        if isinstance(self.encoder, FeatureSet):
            yield from self._found(examples, self.encoder, refusals)
            return
        sounds = [sound for example in examples for sound in example.sounds]
        utterances = [Utterance(one.audio, Path(one.audio), one.start, one.duration) for one in sounds]
        workers = min(MOST_THREADS, os.cpu_count() or 1)
        wavs = dict(zip(sounds, decoded(utterances, workers, self.encoder.grid, keep_silent=False)))
        self._encoded = {}
        kept: list[Example] = []
        for example in examples:
            lost = next((found for one in example.sounds if isinstance(found := wavs[one], Refusal)), None)
            if lost is not None:
                silent = lost.reason == AudioReason.SILENT
                reason = ExampleReason.SILENT if silent else ExampleReason.UNREADABLE
                refusals.add(lost.id, reason, lost.detail, lost.audio)
            else:
                kept.append(example)
        for example in kept:
            chosen = [np.asarray(wavs[one]) for one in example.sounds]
            frames = [self.encoder.grid.num_frames(len(wav)) for wav in chosen]
            try:
                yield self._document(example, frames, self._heard(example, chosen))
            except RefusedError as error:
                refusals.add(example.sounds[0].audio if example.sounds else example.task, error)

    def _found(self, examples: list[Example], states: FeatureSet, refusals: Refusals) -> Iterator[Documents]:
        """Documents of recordings whose states are in a feature set."""
        for example in examples:
            try:
                found = [states.find(one.audio, one.start, one.duration) for one in example.sounds]
                rows = np.array([(one.shard, one.start) for one in found], np.int64).reshape(-1, 2)
                yield self._document(example, [one.frames for one in found], {"rows": column_of(rows, False)})
            except RefusedError as error:
                refusals.add(example.sounds[0].audio if example.sounds else example.task, error)

    def _heard(self, example: Example, wavs: list[np.ndarray]) -> dict[str, Column]:
        """What is heard in an example's recordings: their states, or where they lie."""
        if not self.live:
            return {"states": column_of(self._states(example.sounds, wavs), False)}
        paths = "\0".join(os.fspath(one.audio) for one in example.sounds).encode("utf-8", "surrogateescape")
        return {
            "audio": column_of(np.frombuffer(paths, np.uint8), False),
            "span": column_of(spans(example.sounds), False),
        }

    def _document(self, example: Example, frames: Sequence[int], states: dict[str, Column]) -> Documents:
        """A document. states: the side columns that say what is heard at its places."""
        pieces = self.pieces(example)
        made = row(pieces, [self.shape.embeddings(count) for count in frames], self.pad)
        columns = {
            "places": column_of(np.array(made.places, np.int64)),
            "frames": column_of(np.array(frames, np.int64)),
            **states,
            **self.columns(example, pieces, made),
        }
        ids, train = np.array(made.ids, np.int32), np.array(made.train, bool)
        return Documents(example.task, ids, train, np.array([len(ids)]), columns)

    def pieces(self, example: Example) -> list[Piece]:
        """The pieces of an example's token row."""
        return self.template.document(example.messages)

    def _states(self, sounds: Sequence[Speech], wavs: list[np.ndarray]) -> np.ndarray:
        """Encoder states of some sounds; those of neighbouring examples with the same recording are computed once."""
        assert not isinstance(self.encoder, FeatureSet)
        for sound, wav in zip(sounds, wavs):
            if sound not in self._encoded:
                self._encoded[sound] = stored(self.encoder, [wav])
        return np.concatenate([stored(self.encoder, []), *(self._encoded[sound] for sound in sounds)])

    def columns(self, example: Example, pieces: Sequence[Piece], made: Row) -> dict[str, Column]:
        """Further side columns of an example; a system may have some.

        Raises: RefusedError if the example cannot be used.
        """
        return {}


def _has_words(example: Example, refusals: Refusals) -> bool:
    """Whether all texts of an example have a word, or are empty; otherwise it is refused. What an empty text is, the
    template decides."""
    for message in example.messages:
        texts = [part for part in message.parts if isinstance(part, str)]
        said = " ".join(texts).strip()
        if said and len(texts) == len(message.parts) and not has_word(said):
            name = example.sounds[0].audio if example.sounds else example.task
            refusals.add(name, ExampleReason.NO_WORD, f"the {message.role} says {said[:60]!r}")
            return False
    return True


def stored(encoder: Features, wavs: list[np.ndarray]) -> np.ndarray:
    """Encoder states as training reads them: float16 (sum of N, D)."""
    if not wavs:
        return np.empty((0, encoder.dim), np.float16)
    return np.concatenate([halves(one) for one in encoder(wavs)])


def spans(sounds: Sequence[Speech]) -> np.ndarray:
    """Start and duration of each recording, float64 (S, 2)."""
    found = [(one.start, TO_THE_END if one.duration is None else one.duration) for one in sounds]
    return np.array(found, np.float64).reshape(-1, 2)


def column_of(values: np.ndarray, identifies: bool = True) -> Column:
    """A side column of one document."""
    return Column(values, np.array([len(values)]), identifies)
