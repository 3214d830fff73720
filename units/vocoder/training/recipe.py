"""The recipe of a unit vocoder: which head, how large, how it is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from units.vocoder.heads.configs import HeadConfig, HifiGanConfig, MelGeneratorConfig, VocosConfig


@dataclass
class GanRecipe:
    """Adversarial training of the heads "hifigan" and "vocos"; the defaults are HiFi-GAN's (arXiv 2010.05646, section 4)."""

    learning_rate: float = 2e-4
    """Of generator and discriminators at the start."""
    decay: float = 0.999
    """The learning rate is multiplied by this after each `decay_every` steps."""
    decay_every: int = 1000
    """Steps; the published recipe decays once an epoch."""
    mel_weight: float = 45.0
    """Weight of the log-mel L1 loss."""
    feature_weight: float = 2.0
    """Weight of feature matching."""
    duration_weight: float = 1.0
    """Weight of the duration predictor's loss; `dur_prediction_weight` of the published config."""
    discriminator_divisor: int = 1
    """The published discriminators' channels over this: 1, 2, 4, 8 or 16."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """As accelerate knows it."""
    sample_every: int = 1000
    """Steps between samples and mel pictures."""
    samples: int = 3
    """Utterances to speak for them."""

    def __post_init__(self) -> None:
        if self.discriminator_divisor not in (1, 2, 4, 8, 16):
            raise ValueError(f"discriminator_divisor is {self.discriminator_divisor}; it is 1, 2, 4, 8 or 16")


@dataclass
class VocoderRecipe:
    """The vocoder and how it is trained. The defaults suit an hour or two of one clean voice."""

    generator: MelGeneratorConfig = field(default_factory=MelGeneratorConfig)
    """Sizes of the network with the head "mel"."""
    steps: int = 1100
    """Optimiser steps."""
    batch_size: int = 8
    """Crops in one step, on each device."""
    crop_frames: int = 64
    """Unit frames of a crop; 64 are 1.28 s. Every step has this one shape: a CPU prepares its kernels for each new one."""
    peak_lr: float = 2e-3
    """Learning rate of the head "mel" after warm-up; it falls along a cosine to 2 percent of this."""
    warmup: int = 30
    """Steps of linear warm-up."""
    weight_decay: float = 0.01
    """AdamW's."""
    seed: int = 0
    """Seeds weights and crops."""
    save_every: int = 200
    """Steps between checkpoints."""
    log_every: int = 20
    """Steps between lines of the log."""
    cache_gib: float = 2.0
    """Memory for targets of all processes together, about 0.1 GiB an hour of log-mels and 0.2 GiB an hour of wavs; what does
    not fit into a process's share is made again when it is drawn there."""
    head: Literal["mel", "vocos", "hifigan"] = "mel"
    """"mel" trains in minutes on a laptop; "vocos" and "hifigan" train adversarially and sound natural."""
    vocos: VocosConfig = field(default_factory=VocosConfig)
    """Sizes of the network with the head "vocos"."""
    hifigan: HifiGanConfig = field(default_factory=HifiGanConfig)
    """Sizes of the network with the head "hifigan"."""
    gan: GanRecipe = field(default_factory=GanRecipe)
    """Adversarial training; not looked at by the head "mel"."""
    multi_speaker: bool = False
    """One row of a speaker table for each speaker of the manifest."""
    workers: int | None = None
    """Processes that make batches for each device; 0 makes them in the training process, as on a CPU if not given; for a GPU
    up to 8."""

    def __post_init__(self) -> None:
        if self.multi_speaker and self.head == "mel":
            raise ValueError('the head "mel" has one voice; for several choose "vocos" or "hifigan"')

    @property
    def settings(self) -> HeadConfig:
        """Sizes of the chosen head."""
        heads: dict[str, HeadConfig] = {"mel": self.generator, "vocos": self.vocos, "hifigan": self.hifigan}
        return heads[self.head]

    def learning_rate(self, step: int) -> float:
        """Of step 0, 1, ..."""
        if self.head != "mel":
            return self.gan.learning_rate * self.gan.decay ** (step // self.gan.decay_every)
        fallen = 0.5 - 0.5 * math.cos(math.pi * min(1.0, step / max(1, self.steps)))
        return self.peak_lr * min(1.0, (step + 1) / max(1, self.warmup)) * (1 - 0.98 * fallen)
