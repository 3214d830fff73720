"""Token rows of examples, with places for speech, and side columns that say what stands there.

| column | rows of a document | what |
|---|---|---|
| `places` | M of all its sounds | where each embedding stands in the document |
| `frames` | one a sound | frames N of its encoder states |
| `states` | N of all its sounds | encoder states, float16 (D,), for features: cached |
| `audio` | bytes | paths of its recordings, joined by NUL, for features: live |
| `span` | one a sound | start and duration in seconds, -1 for all, for features: live |
| `teacher`, `teacher_train` | tokens | the document with transcripts in place of speech, for the loss kl |
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from speechgpt.dialogue import Speech
from stages.system import Column, Documents
from units.corpus.decoding import decoded
from units.corpus.manifest import Utterance
from units.encoder.unit_encoder import Features
from units.runtime.refusals import Reason, Refusal, Refusals, RefusedError
from variants.blsp.adapter_shape import AdapterShape
from variants.blsp.data.examples import Example
from variants.blsp.template import Template
from variants.listening import Piece, Row, Tokens, row

DOCUMENTS_VERSION = 1  # for caches of tokens: raise it when this file gives other documents
TOGETHER = 32  # examples whose recordings are encoded at once
MOST_THREADS = 4  # that decode recordings ahead
TO_THE_END = -1.0  # seconds: the duration of a segment that ends with its file


class ExampleReason(Reason):
    """Why an example is left out of training."""

    UNREADABLE = "unreadable_audio"
    """a recording of it cannot be read"""
    NO_TRANSCRIPT = "no_transcript"
    """the loss kl needs the transcript of a recording, and it is not known"""


class Writer:
    """Turns examples into documents."""

    def __init__(
        self, template: Template, encoder: Features, shape: AdapterShape, pad: int, live: bool, teacher: bool
    ) -> None:
        """
        Args:
            pad: the token at places for speech.
            live: keep where recordings lie, instead of their encoder states.
            teacher: also write each document with transcripts in place of speech.
        """
        self.template, self.encoder, self.shape, self.pad = template, encoder, shape, pad
        self.live, self.teacher = live, teacher

    def documents(self, examples: Iterable[Example], refusals: Refusals) -> Iterator[Documents]:
        """One document for each example whose recordings can be read."""
        iterator = iter(examples)
        while some := list(itertools.islice(iterator, TOGETHER)):
            yield from self._written(some, refusals)

    def _written(self, examples: list[Example], refusals: Refusals) -> Iterator[Documents]:
        sounds = [sound for example in examples for sound in example.sounds]
        utterances = [Utterance(one.audio, Path(one.audio), one.start, one.duration) for one in sounds]
        workers = min(MOST_THREADS, os.cpu_count() or 1)
        wavs = dict(zip(sounds, decoded(utterances, workers, self.encoder.grid)))
        kept: list[Example] = []
        for example in examples:
            lost = next((found for one in example.sounds if isinstance(found := wavs[one], Refusal)), None)
            if lost is not None:
                refusals.add(lost.id, ExampleReason.UNREADABLE, lost.detail, lost.audio)
            else:
                kept.append(example)
        for example in kept:
            try:
                yield self._document(example, [np.asarray(wavs[one]) for one in example.sounds])
            except RefusedError as error:
                refusals.add(example.sounds[0].audio if example.sounds else example.task, error)

    def _document(self, example: Example, wavs: list[np.ndarray]) -> Documents:
        frames = [self.encoder.grid.num_frames(len(wav)) for wav in wavs]
        pieces = self.template.document(example.messages)
        made = row(pieces, [self.shape.embeddings(count) for count in frames], self.pad)
        columns = {"places": _column(np.array(made.places, np.int64)), "frames": _column(np.array(frames, np.int64))}
        if self.live:
            paths = "\0".join(os.fspath(one.audio) for one in example.sounds).encode("utf-8", "surrogateescape")
            columns["audio"] = _column(np.frombuffer(paths, np.uint8), False)
            columns["span"] = _column(spans(example.sounds), False)
        else:
            columns["states"] = _column(stored(self.encoder, wavs), False)
        if self.teacher:
            columns |= self._teacher(pieces, example)
        ids, train = np.array(made.ids, np.int32), np.array(made.train, bool)
        return Documents(example.task, ids, train, np.array([len(ids)]), columns)

    def _teacher(self, pieces: Sequence[Piece], example: Example) -> dict[str, Column]:
        written: list[Piece] = []
        for piece in pieces:
            if isinstance(piece, Speech):
                transcript = example.transcripts.get(piece)
                if not transcript:
                    raise RefusedError(ExampleReason.NO_TRANSCRIPT, f"{piece.audio} has no transcript, for the loss kl")
                piece = Tokens(self.template.text(transcript))
            written.append(piece)
        made: Row = row(written, [], self.pad)
        return {"teacher": _column(np.array(made.ids, np.int32)), "teacher_train": _column(np.array(made.train, bool))}


def stored(encoder: Features, wavs: list[np.ndarray]) -> np.ndarray:
    """Encoder states as training reads them: float16 (sum of N, D)."""
    if not wavs:
        return np.empty((0, encoder.dim), np.float16)
    return np.concatenate([one.half().cpu().numpy() for one in encoder(wavs)])


def spans(sounds: Sequence[Speech]) -> np.ndarray:
    """Start and duration of each recording, float64 (S, 2)."""
    found = [(one.start, TO_THE_END if one.duration is None else one.duration) for one in sounds]
    return np.array(found, np.float64).reshape(-1, 2)


def _column(values: np.ndarray, identifies: bool = True) -> Column:
    return Column(values, np.array([len(values)]), identifies)
