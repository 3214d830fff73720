"""Token rows of examples: those of variants/speech_in/documents.py, and what the speech decoder learns from.

| column | rows of a document | what |
|---|---|---|
| `said` | tokens of the answer | where they stand in the document, the one that ends it too |
| `units` | units of the answer | the decoder's targets |
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages.system import Column
from units.codebook import Codebook
from units.dataset.feature_set import FeatureSet
from units.encoder.unit_encoder import Features
from units.runtime.refusals import Reason, RefusedError
from variants.listening import Piece, Row
from variants.llama_omni.data.examples import OmniExample
from variants.speech_in import documents
from variants.speech_in.documents import AdapterShape, column_of
from variants.speech_in.examples import Example
from variants.speech_in.templates import Template

DOCUMENTS_VERSION = 2  # for caches of tokens: raise it when this file gives other documents


class AnswerReason(Reason):
    """Why an example teaches the speech decoder nothing."""

    NO_UNITS = "no_units"
    """its answer has no units"""
    FOREIGN_UNITS = "foreign_units"
    """its answer has units that are not of the codebook"""


class Writer(documents.Writer):
    """Turns examples into documents."""

    def __init__(
        self,
        template: Template,
        encoder: Features | FeatureSet,
        shape: AdapterShape,
        pad: int,
        live: bool,
        codebook: Codebook | None,
    ) -> None:
        """
        Args:
            encoder: the encoder, or its states of all recordings.
            pad: the token at places for speech. live: keep where recordings lie, instead of their encoder states.
            codebook: of the decoder's units; None for a stage that answers in text.
        """
        super().__init__(template, encoder, shape, pad, live)
        self.codebook = codebook

    def columns(self, example: Example, pieces: Sequence[Piece], made: Row) -> dict[str, Column]:
        if self.codebook is None:
            return {}
        units = example.units if isinstance(example, OmniExample) else None
        if not units:
            raise RefusedError(AnswerReason.NO_UNITS, "its answer has no units")
        if not 0 <= min(units) <= max(units) < self.codebook.size:
            raise RefusedError(
                AnswerReason.FOREIGN_UNITS, f"it has the unit {max(units)}; the codebook has {self.codebook.size}"
            )
        said = np.flatnonzero(np.array(made.train))
        return {"said": column_of(said.astype(np.int64), False), "units": column_of(np.array(units, np.int32))}
