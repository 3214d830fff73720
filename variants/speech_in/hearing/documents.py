"""Recordings with transcripts as documents of places alone: what is to be heard stands beside them.

| column | rows of a document | what |
|---|---|---|
| `said` | tokens | the transcript of its one sound |
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages.system import Column
from units.runtime.refusals import Reason, RefusedError
from variants.listening import Piece, Row
from variants.speech_in.documents import Writer, column_of
from variants.speech_in.examples import Example
from variants.speech_in.hearing.ctc import places_needed


class HearingReason(Reason):
    """Why a recording cannot be learned from."""

    TOO_SHORT = "too_short"
    """it has fewer places than its transcript needs"""


class TranscriptWriter(Writer):
    """Turns recordings with transcripts into documents of places alone."""

    def pieces(self, example: Example) -> list[Piece]:
        return list(example.sounds)

    def columns(self, example: Example, pieces: Sequence[Piece], made: Row) -> dict[str, Column]:
        (sound,) = example.sounds
        said = self.template.text(example.transcripts[sound])
        if len(made.places) < (needed := places_needed(said)):
            detail = f"{len(made.places)} places, and its transcript of {len(said)} tokens needs {needed}"
            raise RefusedError(HearingReason.TOO_SHORT, detail)
        return {"said": column_of(np.array(said, np.int32))}
