"""Token rows of BLSP's examples: those of variants/speech_in/documents.py, and what the loss kl needs.

| column | rows of a document | what |
|---|---|---|
| `teacher`, `teacher_train` | tokens | the document with transcripts in place of speech, for the loss kl |
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from speechgpt.dialogue import Speech
from stages.system import Column
from units.dataset.feature_set import FeatureSet
from units.encoder.unit_encoder import Features
from units.runtime.refusals import Reason, RefusedError
from variants.blsp.adapter_shape import AdapterShape
from variants.blsp.template import Template
from variants.listening import Piece, Row, Tokens, row
from variants.speech_in import documents
from variants.speech_in.documents import column_of
from variants.speech_in.examples import Example

DOCUMENTS_VERSION = 1  # for caches of tokens: raise it when this file gives other documents


class TeacherReason(Reason):
    """Why an example has no document for the loss kl."""

    NO_TRANSCRIPT = "no_transcript"
    """the loss kl needs the transcript of a recording, and it is not known"""


class Writer(documents.Writer):
    """Turns examples into documents."""

    def __init__(
        self,
        template: Template,
        encoder: Features | FeatureSet,
        shape: AdapterShape,
        pad: int,
        live: bool,
        teacher: bool = False,
    ) -> None:
        """
        Args:
            encoder: the encoder, or its states of all recordings.
            pad: the token at places for speech.
            live: keep where recordings lie, instead of their encoder states.
            teacher: also write each document with transcripts in place of speech.
        """
        super().__init__(template, encoder, shape, pad, live)
        self.teacher = teacher

    def columns(self, example: Example, pieces: Sequence[Piece], made: Row) -> dict[str, Column]:
        return self._teacher(pieces, example) if self.teacher else {}

    def _teacher(self, pieces: Sequence[Piece], example: Example) -> dict[str, Column]:
        written: list[Piece] = []
        for piece in pieces:
            if isinstance(piece, Speech):
                transcript = example.transcripts.get(piece)
                if not transcript:
                    raise RefusedError(TeacherReason.NO_TRANSCRIPT, f"{piece.audio} has no transcript, for the loss kl")
                piece = Tokens(self.template.text(transcript))
            written.append(piece)
        made: Row = row(written, [], self.pad)
        return {
            "teacher": column_of(np.array(made.ids, np.int32)),
            "teacher_train": column_of(np.array(made.train, bool)),
        }
