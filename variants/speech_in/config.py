"""Settings of a stage of a system that listens, beside those of every stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from stages.config import StageConfig
from units.runtime.command import check_range
from units.runtime.settings import check_types


@dataclass
class Disturbance:
    """Changes of the encoder's states in training, drawn anew each time, so that an adapter does not depend on single
    frames and channels, nor on a voice."""

    noise: float = 0.0
    """Deviation of the noise that is added, relative to that of the states."""
    time: float = 0.0
    """Share of the frames that are set to 0, in spans of 0.2 s."""
    channels: float = 0.0
    """Share of the channels that are set to 0 all through a recording."""

    def __post_init__(self) -> None:
        check_types(self, "disturbance.")
        check_range("noise", self.noise, 0)
        check_range("time", self.time, 0, 1)
        check_range("channels", self.channels, 0, 1)

    def __bool__(self) -> bool:
        return bool(self.noise or self.time or self.channels)


@dataclass
class ListeningConfig(StageConfig):
    """A stage in which an encoder listens."""

    encoder: str = "starter"
    """Encoder that listens: starter or codec (they come with the package), a folder relative to the run folder, or a
    hub id of a HuBERT, wav2vec 2.0 or Whisper, or a fairseq .pt."""
    encoder_layer: int = 0
    """Layer of the encoder, counted from 1; 0 is the last one."""
    window: Literal["full", "utterance", "padded"] = "full"
    """For Whisper: full pads each recording to 30 s, as the published models do; utterance does not, and takes a
    fraction of the time; padded is full with the states of the padding, as the published LLaMA-Omni reads them."""
    features: str = "cached"
    """cached encodes each recording once and keeps its states beside the tokens, in half precision; live encodes it in
    each step; a feature set (units-extract --features), relative to the run folder, has them already, for all stages.
    All train the same."""
    disturbance: Disturbance = field(default_factory=Disturbance)
    """Changes of the encoder's states in training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("encoder_layer", self.encoder_layer, 0)

    def part(self, name: str) -> str:
        """A part that a config names: a folder of its run, or the name as it is (a hub id, a path, `codec`)."""
        from units.shipped import ENCODERS

        folder: Path = self.at(name)
        return str(folder) if name not in ENCODERS and folder.exists() else name
