"""The recipe of a unit vocoder: its head, the head's settings, and how it is trained. Imports no torch.

The names of the fields are the options of units-train-vocoder and the keys of units/configs/*.yaml.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from units.vocoder.errors import VocoderError, VocoderReason
from units.vocoder.heads.configs import (
    HeadConfig,
    HifiGanConfig,
    MelGeneratorConfig,
    VocosConfig,
    check_least,
    check_most,
    check_settings,
)

DIVISORS = (1, 2, 4, 8, 16)
LAST_LEARNING_RATE = 0.02  # of the head "mel" at its last step, as a fraction of peak_lr


@dataclass
class GanRecipe:
    """Adversarial training of the heads "hifigan" and "vocos".

    The defaults are HiFi-GAN's (arXiv 2010.05646, section 4).
    """

    learning_rate: float = 2e-4
    """Learning rate of generator and discriminators at the start."""
    decay: float = 0.999
    """Factor of the learning rate after each `decay_every` steps."""
    decay_every: int = 1000
    """Steps between decays; the published recipe decays once an epoch."""
    mel_weight: float = 45.0
    """Weight of the log-mel L1 loss."""
    feature_weight: float = 2.0
    """Weight of feature matching."""
    duration_weight: float = 1.0
    """Weight of the duration predictor's loss; `dur_prediction_weight` of the published config."""
    discriminator_divisor: int = 1
    """Divisor of the published discriminators' channels: 1, 2, 4, 8 or 16."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of accelerate."""
    sample_every: int = 1000
    """Steps between samples and their mel pictures."""
    samples: int = 3
    """Utterances in each set of samples."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.discriminator_divisor not in DIVISORS:
            raise VocoderError(
                VocoderReason.INVALID_SETTING,
                f"discriminator_divisor is {self.discriminator_divisor}; it is one of {', '.join(map(str, DIVISORS))}",
            )
        check_least(self, {"learning_rate": 0, "decay": 0, "decay_every": 1, "sample_every": 1, "samples": 0})
        for name in ("learning_rate", "decay"):
            check_most(self, name, 1)
        check_least(self, {"mel_weight": 0, "feature_weight": 0, "duration_weight": 0})


@dataclass
class VocoderRecipe:
    """A vocoder and its training. The defaults suit an hour or two of one clean speaker."""

    generator: MelGeneratorConfig = field(default_factory=MelGeneratorConfig)
    """Settings of the head "mel"."""
    steps: int = 1100
    """Optimiser steps."""
    batch_size: int = 8
    """Crops in one step, on each device."""
    crop_frames: int = 64
    """Unit frames of a crop; 64 are 1.28 s. All steps have this shape: a CPU prepares its kernels anew for another."""
    peak_lr: float = 2e-3
    """Learning rate of the head "mel" after warm-up; it falls along a cosine to 2 percent of this."""
    warmup: int = 30
    """Steps of linear warm-up."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    seed: int = 0
    """Seed of weights and crops."""
    save_every: int = 200
    """Steps between checkpoints."""
    log_every: int = 20
    """Steps between lines of the log."""
    cache_gib: float = 2.0
    """Memory for training targets, shared by all processes: about 0.1 GiB an hour of log-mels, 0.2 GiB an hour of wavs.
    Targets beyond a process's share are computed again each time they are drawn."""
    head: Literal["mel", "vocos", "hifigan"] = "mel"
    """"mel" trains in minutes on a laptop; "vocos" and "hifigan" train adversarially and sound natural."""
    vocos: VocosConfig = field(default_factory=VocosConfig)
    """Settings of the head "vocos"."""
    hifigan: HifiGanConfig = field(default_factory=HifiGanConfig)
    """Settings of the head "hifigan"."""
    gan: GanRecipe = field(default_factory=GanRecipe)
    """Adversarial training; the head "mel" does not use it."""
    multi_speaker: bool = False
    """One row of a speaker table for each speaker of the manifest."""
    weights: Literal["float32", "float16"] = "float32"
    """Precision of the weights in the finished folder; float16 is half as large."""
    workers: int | None = None
    """Worker processes that make batches, for each device. 0 makes them in the training process, the default on a CPU;
    the default for a GPU is up to 8."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.multi_speaker and self.head == "mel":
            raise VocoderError(
                VocoderReason.INVALID_SETTING,
                'the head "mel" has one speaker; for multi_speaker choose "vocos" or "hifigan"',
            )
        check_least(self, {"steps": 1, "batch_size": 1, "crop_frames": 1, "save_every": 1, "log_every": 1})
        check_least(self, {"peak_lr": 0, "warmup": 0, "weight_decay": 0, "seed": 0, "cache_gib": 0})
        check_most(self, "peak_lr", 1)
        if self.workers is not None:
            check_least(self, {"workers": 0})

    @property
    def settings(self) -> HeadConfig:
        """Settings of the chosen head."""
        heads: dict[str, HeadConfig] = {"mel": self.generator, "vocos": self.vocos, "hifigan": self.hifigan}
        return heads[self.head]

    def learning_rate(self, step: int) -> float:
        """The learning rate of step 0, 1, ..."""
        if self.head != "mel":
            return self.gan.learning_rate * self.gan.decay ** (step // self.gan.decay_every)
        fallen = 0.5 - 0.5 * math.cos(math.pi * min(1.0, step / max(1, self.steps)))
        return self.peak_lr * min(1.0, (step + 1) / max(1, self.warmup)) * (1 - (1 - LAST_LEARNING_RATE) * fallen)
