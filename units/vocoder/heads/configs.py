"""Settings of the three heads: "mel", "hifigan" and "vocos". Imports no torch, so that `--help` is quick.

The class of the settings selects the head; `head` is its name in a vocoder's config.json.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

from units.audio import HOP
from units.runtime.settings import check_types
from units.vocoder.errors import VocoderError, VocoderReason

LARGEST = 2**32  # of a whole number: a seed may be as large


def check_least(config: Any, least: dict[str, float]) -> None:
    """Check that each named setting is a number of at least the given size, and a whole one if it is annotated so.

    Raises: VocoderError naming the setting, its value and the smallest allowed value.
    """
    whole = {field.name for field in dataclasses.fields(config) if str(field.type).startswith("int")}
    for name, smallest in least.items():
        value = getattr(config, name)
        fits = is_count(value) if name in whole else is_number(value)
        if not fits or not smallest <= value:
            kind = f"a whole number, at most {LARGEST}," if name in whole else "a finite number,"
            raise _invalid(f"{name} is {repr(value)[:60]}; it is {kind} {smallest} or more")


def check_settings(config: Any) -> None:
    """Check that numbers and switches are of the types of their fields. Raises VocoderError."""
    try:
        check_types(config)
    except ValueError as error:
        raise _invalid(str(error)) from error


def check_most(config: Any, name: str, largest: float) -> None:
    """Check that a setting is at most the given number. Raises VocoderError."""
    if not getattr(config, name) <= largest:
        raise _invalid(f"{name} is {getattr(config, name)!r}; it is {largest} or less")


def is_count(value: object) -> bool:
    """Whether a setting is a whole number of a size that a network can have."""
    return isinstance(value, int) and not isinstance(value, bool) and value <= LARGEST


def is_number(value: object) -> bool:
    """Whether a setting is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf


def check_odd(config: object, *names: str) -> None:
    """Check that kernels are odd, so that a convolution keeps the length of its input.

    Raises: VocoderError.
    """
    for name in names:
        if getattr(config, name) % 2 == 0:
            raise _invalid(f"{name} is {getattr(config, name)}; kernels are odd numbers")


def _is_positive(value: object) -> bool:
    return is_count(value) and value >= 1  # type: ignore[operator]


def _check_counts(config: object, *names: str) -> None:
    """Check that tuples of settings hold whole numbers, 1 or more. Raises VocoderError."""
    for name in names:
        values = getattr(config, name)
        if not isinstance(values, (tuple, list)) or not values or not all(map(_is_positive, values)):
            raise _invalid(f"{name} are {values!r}; they are whole numbers, 1 or more, at least one")


def _invalid(message: str) -> VocoderError:
    return VocoderError(VocoderReason.INVALID_SETTING, message)


@dataclass(frozen=True)
class MelGeneratorConfig:
    """The head "mel": ConvNeXt blocks predict log-mels, which Griffin-Lim inverts."""

    head: ClassVar[str] = "mel"
    num_speakers: ClassVar[int] = 0

    width: int = 192
    """Hidden width D."""
    slow_blocks: int = 3
    """ConvNeXt blocks at 50 frames a second."""
    fast_blocks: int = 2
    """ConvNeXt blocks at 100 frames a second."""
    kernel: int = 7
    """Kernel of a block's convolution in frames, odd."""
    expansion: int = 3
    """Hidden width of a block's MLP, divided by D."""
    mels: int = 80
    """Mel bands."""
    griffin_lim_iterations: int = 16
    """Iterations of phase reconstruction. A block starts from the sound that the block before expected, so few are
    enough; whole utterances (`block_frames: 0`) start from nothing and need about 40."""
    block_frames: int = 16
    """Unit frames of 20 ms that are inverted together, each block continuing the sound of the one before, so that sound
    can be streamed. 0 inverts whole utterances, as release 0.1.0 did."""

    def __post_init__(self) -> None:
        check_least(self, dict.fromkeys(("width", "kernel", "expansion", "mels"), 1))
        check_least(self, dict.fromkeys(("slow_blocks", "fast_blocks", "griffin_lim_iterations", "block_frames"), 0))
        check_odd(self, "kernel")


@dataclass(frozen=True)
class UnitNetworkConfig:
    """Settings that the waveform heads "hifigan" and "vocos" share."""

    head: ClassVar[str]

    embedding_dim: int = 128
    """Width of a unit's embedding, and of a speaker's."""
    num_speakers: int = 0
    """Rows of the speaker table; 0 for a vocoder with one speaker and no table."""
    duration_width: int = 128
    """Hidden width of the duration predictor; 0 leaves it out."""
    duration_kernel: int = 3
    """Kernel of the duration predictor's convolutions in units, odd."""
    duration_dropout: float = 0.5
    """Dropout of the duration predictor."""

    def __post_init__(self) -> None:
        check_least(self, {"embedding_dim": 1, "num_speakers": 0, "duration_width": 0, "duration_kernel": 1})
        check_odd(self, "duration_kernel")
        if not is_number(self.duration_dropout) or not 0 <= self.duration_dropout < 1:
            raise _invalid(f"duration_dropout is {self.duration_dropout}; it is from 0 up to, not including, 1")

    @property
    def input_dim(self) -> int:
        """Input channels of the network: a unit's embedding, and the speaker's where there is a speaker table."""
        return self.embedding_dim * (2 if self.num_speakers else 1)


@dataclass(frozen=True)
class HifiGanConfig(UnitNetworkConfig):
    """The head "hifigan", under the published names. The defaults are the published English vocoder's."""

    head: ClassVar[str] = "hifigan"

    upsample_rates: tuple[int, ...] = (5, 4, 4, 2, 2)
    """Strides of the transposed convolutions. Their product is 320 samples, one unit frame."""
    upsample_kernel_sizes: tuple[int, ...] = (11, 8, 8, 4, 4)
    """Kernels of the transposed convolutions. Each exceeds its stride by an even number."""
    upsample_initial_channel: int = 512
    """Channels at 50 frames a second. Each upsampling halves them."""
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    """Kernels of the residual blocks that are averaged after each upsampling, odd."""
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    """Dilations of each block's convolutions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_upsampling()
        self._check_resblocks()

    def _check_upsampling(self) -> None:
        _check_counts(self, "upsample_rates", "upsample_kernel_sizes", "resblock_kernel_sizes")
        rates, kernels = list(self.upsample_rates), list(self.upsample_kernel_sizes)
        check_least(self, {"upsample_initial_channel": 1})
        if math.prod(rates) != HOP:
            raise _invalid(
                f"upsample_rates {rates} multiply to {math.prod(rates)} samples a unit frame; "
                f"a frame of 20 ms at 16 kHz has {HOP}"
            )
        if len(rates) != len(kernels) or any(
            kernel < rate or (kernel - rate) % 2 for rate, kernel in zip(rates, kernels)
        ):
            raise _invalid(
                f"upsample_kernel_sizes {kernels} do not fit upsample_rates {rates}: "
                "each rate needs a kernel that is longer by 0, 2, 4, ..."
            )
        if self.upsample_initial_channel < 1 or self.upsample_initial_channel % 2 ** len(rates):
            raise _invalid(
                f"upsample_initial_channel is {self.upsample_initial_channel}; it is halved {len(rates)} times, "
                f"so it is a multiple of {2 ** len(rates)}"
            )

    def _check_resblocks(self) -> None:
        kernels, dilations = self.resblock_kernel_sizes, self.resblock_dilation_sizes
        if not all(isinstance(block, tuple) and all(map(_is_positive, block)) for block in dilations):
            raise _invalid(f"resblock_dilation_sizes are {dilations}; each block has a list of numbers, 1 or more")
        if len(kernels) != len(dilations):
            raise _invalid(
                f"{len(kernels)} resblock_kernel_sizes, but {len(dilations)} resblock_dilation_sizes; "
                "each block has one of both"
            )
        if any(kernel % 2 == 0 for kernel in kernels):
            raise _invalid(f"resblock_kernel_sizes are {list(kernels)}; kernels are odd numbers")


@dataclass(frozen=True)
class VocosConfig(UnitNetworkConfig):
    """The head "vocos". The defaults have about as many weights as the published HiFi-GAN."""

    head: ClassVar[str] = "vocos"

    width: int = 512
    """Hidden width D."""
    blocks: int = 8
    """ConvNeXt blocks."""
    kernel: int = 7
    """Kernel of each convolution in frames, odd."""
    expansion: int = 3
    """Hidden width of a block's MLP, divided by D."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, {"width": 1, "blocks": 0, "kernel": 1, "expansion": 1})
        check_odd(self, "kernel")


HeadConfig = MelGeneratorConfig | HifiGanConfig | VocosConfig
