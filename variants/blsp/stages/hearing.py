"""BLSP's stage of kind ctc: the adapter learns to hear words (variants/speech_in/hearing).

python -m variants.blsp.train variants/blsp/configs/smol/hear.yaml
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from speechgpt.dialogue import Speech
from variants.blsp.data.examples import transcripts_of
from variants.blsp.data.labels import label_files
from variants.blsp.stages.opened import BlspOpened
from variants.speech_in.hearing.stage import HearingOpened


class BlspHearing(HearingOpened, BlspOpened):  # type: ignore[misc]
    """BLSP at the start of a stage of kind ctc."""

    parts = {"adapter": ("adapter.", "head.")}

    def transcripts(self, path: Path) -> Iterable[tuple[Speech, str | None]]:
        return transcripts_of(path)

    def source_files(self, path: Path) -> list[Path]:
        return label_files(path)
