"""Settings of a stage of a system that listens, beside those of every stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stages.config import StageConfig
from units.runtime.command import check_range


@dataclass
class ListeningConfig(StageConfig):
    """A stage in which an encoder listens."""

    encoder: str = "starter"
    """Encoder that listens: starter (comes with the package), a folder relative to the run folder, or a hub id of a
    HuBERT, wav2vec 2.0 or Whisper, or a fairseq .pt."""
    encoder_layer: int = 0
    """Layer of the encoder, counted from 1; 0 is the last one."""
    window: Literal["full", "utterance", "padded"] = "full"
    """For Whisper: full pads each recording to 30 s, as the published models do; utterance does not, and takes a
    fraction of the time; padded is full with the states of the padding, as the published LLaMA-Omni reads them."""
    features: Literal["cached", "live"] = "cached"
    """cached encodes each recording once and keeps its states beside the tokens, in half precision; live encodes it in
    each step. Both train the same."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("encoder_layer", self.encoder_layer, 0)

    def part(self, name: str) -> str:
        """A part that a config names: a folder of its run, or the name as it is (a hub id, a path, `starter`)."""
        from variants.references import STARTER_NAME

        folder: Path = self.at(name)
        return str(folder) if name != STARTER_NAME and folder.exists() else name
