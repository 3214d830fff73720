"""How unit encoders are made: the settings of units-fit and of units-pretrain, each with its allowed range."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from units.audio import SAMPLE_RATE
from units.encoder.centring import CENTRINGS
from units.runtime.settings import check_types

CROP_STEP = 4000  # samples: crops come in few lengths, so that the CPU's kernels are prepared once for each
ENDLESS = math.inf
MAX_UNITS = 1 << 16  # unit sets hold units as uint16
POSITION_GROUPS = 16  # of the positional convolution; they share the width evenly


def _check_ranges(settings: Any, ranges: dict[str, tuple[float, float]]) -> None:
    for name, (least, most) in ranges.items():
        value = getattr(settings, name)
        if not least <= value <= most or abs(value) == math.inf:
            allowed = f"at least {least}, and finite" if most == ENDLESS else f"from {least} to {most}"
            raise ValueError(f"{name} is {value}; it is {allowed}")


def _check_centring(centring: str) -> None:
    if centring not in CENTRINGS:
        raise ValueError(f"centring is {centring!r}; it is one of {', '.join(CENTRINGS)}")


@dataclass(frozen=True)
class FitRecipe:
    """What a codebook is fitted on, and how."""

    encoder: str = "starter"
    """starter or codec (they come with the package), mfcc, a transformers HuBERT or Whisper folder, a hub id, or a
    fairseq .pt"""
    layer: int = 2
    """Transformer layer, counted from 1; mfcc has none."""
    size: int = 100
    """Number of units K."""
    centring: str = "utterance"
    """Mean normalisation: utterance subtracts its mean from each utterance (less of the speaker); frame also scales
    each frame to deviation 1 (for a Whisper); or none."""
    utterances: int = 2000
    """Utterances that are drawn."""
    frames: int = 150_000
    """Frames that k-means is fitted on, at most."""
    seed: int = 0
    """Seeds the choice of utterances and frames, and the fit."""
    name: str | None = None
    """The codebook's name; made from encoder, layer and size if not given."""

    def __post_init__(self) -> None:
        check_types(self)
        counts = dict.fromkeys(("layer", "utterances", "frames"), (1, ENDLESS))
        _check_ranges(self, {**counts, "size": (1, MAX_UNITS), "seed": (0, 2**32 - 1)})
        _check_centring(self.centring)


@dataclass(frozen=True)
class Iteration:
    """One round of targets and training."""

    steps: int
    """Optimiser steps."""
    clusters: dict[int, list[int]]
    """Codebook sizes to predict, by the layer of the previous iteration they are fitted on; layer 0 is MFCC."""
    peak_lr: float = 1.5e-3
    """Learning rate after warm-up; it falls linearly to 3 percent of this."""
    teacher: str | None = None
    """Another encoder whose layers `clusters` names: a transformers HuBERT or Whisper folder, a hub id, or a fairseq
    .pt. Its targets are those of the clean wavs."""
    centring: str = "utterance"
    """Mean normalisation of the features before they are clustered: utterance, frame (for a Whisper), or none."""

    def __post_init__(self) -> None:
        check_types(self)
        _check_ranges(self, {"steps": (1, ENDLESS), "peak_lr": (0, 1)})
        _check_centring(self.centring)
        if not self.sizes or min(self.sizes) < 1 or min(self.clusters) < 0:
            raise ValueError(f"clusters is {self.clusters}; it has layers from 0, each with sizes of at least 1")

    @property
    def sizes(self) -> list[int]:
        """Codebook sizes, one for each head."""
        return [size for of_layer in self.clusters.values() for size in of_layer]


def _two_iterations() -> list[Iteration]:
    return [Iteration(5000, {0: [100, 500]}), Iteration(12000, {0: [100], 3: [200, 500]})]


@dataclass(frozen=True)
class PretrainRecipe:
    """The encoder and how it is trained. The defaults made the shipped starter encoder."""

    width: int = 256
    """Hidden width D."""
    layers: int = 4
    """Transformer layers."""
    heads: int = 4
    """Attention heads."""
    conv_width: int = 64
    """Channels of the convolutional front end."""
    batch_seconds: float = 10.0
    """Audio in one step."""
    max_crop_seconds: float = 3.0
    """Longest segment of one utterance in a step."""
    iterations: list[Iteration] = field(default_factory=_two_iterations)
    """Rounds of clustering and training."""
    mask_start: float = 0.08
    """Probability that a masked span starts at a frame."""
    mask_span: int = 8
    """Frames of a masked span."""
    unmasked_weight: float = 0.5
    """Weight of the loss on frames that are not masked."""
    speed_range: float = 0.08
    """A crop is played faster or slower by up to this share (tempo, pitch and vocal tract together)."""
    noise_probability: float = 0.5
    """Share of crops with white noise added at 10 to 40 dB."""
    warmup: int = 150
    """Steps of linear warm-up in each iteration."""
    formant_range: float = 0.0
    """A crop's spectral envelope is stretched or shrunk by up to this share: another vocal tract at the same pitch."""
    room_probability: float = 0.0
    """Share of crops that a random room echoes in, with 0.1 to 0.6 s of reverberation."""
    babble_probability: float = 0.0
    """Share of crops with another utterance of the step behind them, at 5 to 25 dB."""
    prototypes: bool = False
    """Heads score clusters by their distance: the weights of a head are centres, and those of the last iteration's
    first head are written as a unit encoder, OUT/unit_encoder."""
    seed: int = 0
    """Seeds weights, order, masks and perturbation."""
    save_every: int = 500
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        check_types(self, "recipe.")
        counts = ("width", "layers", "heads", "conv_width", "mask_span", "warmup", "save_every")
        shares = ("mask_start", "noise_probability", "room_probability", "babble_probability")
        _check_ranges(
            self,
            {
                **dict.fromkeys(counts, (1, ENDLESS)),
                **dict.fromkeys(shares, (0, 1)),
                "batch_seconds": (0.1, ENDLESS),
                "max_crop_seconds": (0, ENDLESS),
                "unmasked_weight": (0, ENDLESS),
                "speed_range": (0, 0.9),
                "formant_range": (0, 0.5),
                "seed": (0, 2**32 - 1),
            },
        )
        if self.width % self.heads or self.width % POSITION_GROUPS:
            raise ValueError(
                f"width is {self.width}; it is a multiple of heads ({self.heads}) and of {POSITION_GROUPS}"
            )
        own = [one for one in self.iterations if one.teacher is None]
        if not self.iterations or any(max(one.clusters) > self.layers for one in own):
            raise ValueError(f"iterations is {self.iterations}; there is at least one, on layers 0 to {self.layers}")
        if self.longest < self.shortest:
            least = f"{self.shortest / SAMPLE_RATE:.2f} at a speed_range of {self.speed_range}"
            raise ValueError(f"max_crop_seconds is {self.max_crop_seconds}; it is at least {least}")

    @property
    def longest(self) -> int:
        """Samples of one utterance that a step takes at most."""
        return round(self.max_crop_seconds * SAMPLE_RATE)

    @property
    def shortest(self) -> int:
        """Samples that an utterance needs to fill the shortest crop at the highest speed."""
        return math.ceil(CROP_STEP * (1 + self.speed_range))

    def crop_length(self, length: int) -> int:
        """Samples of a crop that `length` samples of an utterance, at least `shortest`, fill at any speed."""
        length = int(min(length, self.longest) / (1 + self.speed_range))
        return max(CROP_STEP, length - length % CROP_STEP)
