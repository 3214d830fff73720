"""Sizes of the three heads of a unit vocoder. This file imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from units.audio import HOP


@dataclass(frozen=True)
class MelGeneratorConfig:
    """The mel head: ConvNeXt blocks to log-mels, inverted by Griffin-Lim."""

    head: ClassVar[str] = "mel"
    num_speakers: ClassVar[int] = 0

    width: int = 192
    """Hidden width D."""
    slow_blocks: int = 3
    """ConvNeXt blocks at 50 frames a second."""
    fast_blocks: int = 2
    """ConvNeXt blocks at 100 frames a second."""
    kernel: int = 7
    """Frames of a block's convolution, odd."""
    expansion: int = 3
    """Width of a block's MLP over D."""
    mels: int = 80
    """Mel bands."""
    griffin_lim_iterations: int = 40
    """Rounds of phase reconstruction; more are clearer and slower."""


@dataclass(frozen=True)
class UnitNetworkConfig:
    """Sizes that every waveform network has."""

    head: ClassVar[str]

    embedding_dim: int = 128
    """Width of a unit's embedding, and of a speaker's."""
    num_speakers: int = 0
    """Voices to choose from; 0 for one voice without a choice."""
    duration_width: int = 128
    """Hidden width of the duration predictor; 0 leaves it out."""
    duration_kernel: int = 3
    """Units of the duration predictor's convolutions, odd."""
    duration_dropout: float = 0.5
    """Dropout of the duration predictor."""

    @property
    def input_dim(self) -> int:
        """Channels that the network reads: a unit's embedding, and the speaker's where there are several."""
        return self.embedding_dim * (2 if self.num_speakers else 1)


@dataclass(frozen=True)
class HifiGanConfig(UnitNetworkConfig):
    """Sizes under their published names; the defaults are the published English vocoder's."""

    head: ClassVar[str] = "hifigan"

    upsample_rates: tuple[int, ...] = (5, 4, 4, 2, 2)
    """Strides of the transposed convolutions; they multiply to 320 samples, one unit frame."""
    upsample_kernel_sizes: tuple[int, ...] = (11, 8, 8, 4, 4)
    """Their kernels, each longer than its stride by an even number."""
    upsample_initial_channel: int = 512
    """Channels at 50 frames a second; each upsampling halves them."""
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    """Kernels of the residual blocks that are averaged after each upsampling."""
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    """Dilations of each block's convolutions."""

    def __post_init__(self) -> None:
        if math.prod(self.upsample_rates) != HOP:
            raise ValueError(
                f"upsample_rates {list(self.upsample_rates)} multiply to {math.prod(self.upsample_rates)} samples a unit "
                f"frame; a frame of 20 ms at 16 kHz has {HOP}"
            )
        pairs = list(zip(self.upsample_rates, self.upsample_kernel_sizes))
        if len(pairs) != len(self.upsample_kernel_sizes) or any(k < u or (k - u) % 2 for u, k in pairs):
            raise ValueError(
                f"upsample_kernel_sizes {list(self.upsample_kernel_sizes)} do not suit upsample_rates "
                f"{list(self.upsample_rates)}: each rate needs a kernel longer by 0, 2, 4, ..."
            )
        if len(self.resblock_kernel_sizes) != len(self.resblock_dilation_sizes):
            raise ValueError(
                f"{len(self.resblock_kernel_sizes)} resblock_kernel_sizes, but {len(self.resblock_dilation_sizes)} "
                "resblock_dilation_sizes; each block has one of both"
            )
        if any(kernel % 2 == 0 for kernel in (*self.resblock_kernel_sizes, self.duration_kernel)):
            raise ValueError("kernels of residual blocks and of the duration predictor are odd numbers")
        if self.upsample_initial_channel % 2 ** len(self.upsample_rates):
            raise ValueError(
                f"upsample_initial_channel is halved {len(self.upsample_rates)} times; it has to be divisible"
            )


@dataclass(frozen=True)
class VocosConfig(UnitNetworkConfig):
    """Sizes of the Vocos-style head. The defaults are about as many weights as the published HiFi-GAN's."""

    head: ClassVar[str] = "vocos"

    width: int = 512
    """Hidden width D."""
    blocks: int = 8
    """ConvNeXt blocks."""
    kernel: int = 7
    """Frames of each convolution, odd."""
    expansion: int = 3
    """Width of a block's MLP over D."""

    def __post_init__(self) -> None:
        if self.kernel % 2 == 0 or self.duration_kernel % 2 == 0:
            raise ValueError("kernels of the blocks and of the duration predictor are odd numbers")


HeadConfig = MelGeneratorConfig | HifiGanConfig | VocosConfig
