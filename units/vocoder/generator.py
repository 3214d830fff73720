"""Networks that turn units into sound: how long each unit lasts, and what its frames sound like.

Padding never changes a result: every block sees zeros beyond a row's end, as it does when the row is alone.

B batch, U units of a row, N frames (50 a second), D width, M mels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from units.vocoder.mel import MelSpectrogram

LAYER_SCALE = 0.3  # where Vocos starts at 1 / blocks


@dataclass(frozen=True)
class Frames:
    """Units laid out in time.

    ids: int64 (B, N), the unit of each frame. runs: float32 (B, N, 2), where in its run a frame lies (0 to 1) and the
    log of the run's length in frames. mask: bool (B, N), False in the padding.
    """

    ids: Tensor
    runs: Tensor
    mask: Tensor

    @classmethod
    def lay_out(cls, rows: Sequence[tuple[Tensor, Tensor]], device: torch.device | str = "cpu") -> Frames:
        """From (ids, durations) of each row, int64 (U,) each."""
        pairs = [run_frames(ids, durations) for ids, durations in rows]
        lengths = torch.tensor([len(ids) for ids, _ in pairs])
        ids, runs = (nn.utils.rnn.pad_sequence(list(column), batch_first=True) for column in zip(*pairs))
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        return cls(ids.to(device), runs.to(device), mask.to(device))


def run_frames(ids: Tensor, durations: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and durations, int64 (U,) each -> the unit (N,) and the run features (N, 2) of each frame."""
    length = durations.repeat_interleave(durations)
    first = (durations.cumsum(0) - durations).repeat_interleave(durations)
    position = (torch.arange(len(length)) - first + 0.5) / length
    return ids.repeat_interleave(durations), torch.stack([position, length.log()], dim=1)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, LayerNorm, MLP, scaled and added: Vocos (Siuzdak 2023, arXiv 2306.00814), section 3.2."""

    def __init__(self, width: int, kernel: int, expansion: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(width, width, (1, kernel), padding=(0, kernel // 2), groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, expansion * width), nn.GELU(), nn.Linear(expansion * width, width))
        self.scale = nn.Parameter(torch.full((width,), LAYER_SCALE))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, N, D) and mask (B, N, 1) -> (B, N, D); x is zero where the mask is, and so is what returns."""
        # a (B, D, 1, N) view of (B, N, D) is the channels-last layout of a 2-d convolution: nothing is copied
        mixed = self.mix(x.transpose(1, 2)[:, :, None])[:, :, 0].transpose(1, 2)
        return (x + self.scale * self.mlp(self.norm(mixed))) * mask


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


class MelGenerator(nn.Module):
    """Units in time -> log-mels -> wav. Trains in minutes on a laptop; a neural waveform head sounds more natural."""

    def __init__(self, num_units: int, config: MelGeneratorConfig) -> None:
        super().__init__()
        width = config.width
        self.unit = nn.Embedding(num_units, width)
        self.run = nn.Linear(2, width)
        self.slow = self._blocks(config.slow_blocks, config)
        self.upsample = nn.Linear(width, 2 * width)
        self.fast = self._blocks(config.fast_blocks, config)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, config.mels)
        self.spectrogram = MelSpectrogram(config.mels, config.griffin_lim_iterations)

    @staticmethod
    def _blocks(count: int, config: MelGeneratorConfig) -> nn.ModuleList:
        return nn.ModuleList(ConvNeXtBlock(config.width, config.kernel, config.expansion) for _ in range(count))

    def forward(self, frames: Frames) -> Tensor:
        """Log-mels (B, 2 N, M)."""
        mask = frames.mask[..., None]
        x = (self.unit(frames.ids) + self.run(frames.runs)) * mask
        for block in self.slow:
            x = block(x, mask)
        mask = mask.repeat_interleave(2, dim=1)
        x = self.upsample(x).reshape(len(x), mask.shape[1], -1) * mask
        for block in self.fast:
            x = block(x, mask)
        return self.head(self.norm(x))

    def synthesise(self, rows: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Ids and durations, int64 (U,) each, of each row -> wav (sum(durations) * 320,) of each."""
        device = self.head.weight.device
        # one row at a time, as MelSpectrogram.invert explains; the network is a tenth of the work
        return self.spectrogram.invert([self(Frames.lay_out([row], device))[0] for row in rows])

    def loss(self, frames: Frames, log_mels: Tensor) -> Tensor:
        """Mean absolute error against log-mels (B, 2 N, M), padding left out."""
        mask = frames.mask.repeat_interleave(2, dim=1)
        error = (self(frames).float() - log_mels).abs().mean(-1)
        return (error * mask).sum() / mask.sum()


class DurationPredictor(nn.Module):
    """How many frames each unit lasts, from its neighbours: speech resynthesis from units with their durations predicted
    as in Lee et al. 2021, arXiv 2107.05604, section 3.3 (FastSpeech 2's predictor), with ConvNeXt blocks."""

    def __init__(self, num_units: int, width: int = 96, blocks: int = 2, kernel: int = 5) -> None:
        super().__init__()
        self.unit = nn.Embedding(num_units, width)
        self.blocks = nn.ModuleList(ConvNeXtBlock(width, kernel, 3) for _ in range(blocks))
        self.head = nn.Linear(width, 1)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Ids int64 (B, U), mask bool (B, U) -> log frames (B, U)."""
        x = self.unit(ids) * mask[..., None]
        for block in self.blocks:
            x = block(x, mask[..., None])
        return self.head(x)[..., 0]

    @staticmethod
    def whole_frames(log_durations: Tensor) -> Tensor:
        """Log frames as predicted -> whole frames, at least one, int64."""
        return log_durations.float().exp().round().clamp(min=1).long()

    def loss(self, ids: Tensor, durations: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error of log frames, padding left out."""
        error = (self(ids, mask).float() - durations.clamp(min=1).log()).square()
        return (error * mask).sum() / mask.sum()


class MelNetwork(nn.Module):
    """The mel head as a vocoder has it: generator and duration predictor, of one voice."""

    context = None  # Griffin-Lim makes every sample depend on the whole utterance: nothing can be said before its end

    def __init__(self, num_units: int, config: MelGeneratorConfig) -> None:
        super().__init__()
        self.generator = MelGenerator(num_units, config)
        self.durations = DurationPredictor(num_units)

    def log_durations(self, ids: Tensor, mask: Tensor) -> Tensor:
        """log(frames) of units int64 (B, U) with mask bool (B, U)."""
        return self.durations(ids, mask)

    whole_frames = staticmethod(DurationPredictor.whole_frames)

    def duration_bias(self) -> Tensor:
        """The scalar that lengthens all durations by a factor e when it grows by one."""
        return self.durations.head.bias

    def synthesise(self, rows: Sequence[tuple[Tensor, Tensor]], speakers: Sequence[int]) -> list[Tensor]:
        """Ids and durations, int64 (U,) each, of each row -> wav (sum(durations) * 320,) of each."""
        return self.generator.synthesise(rows)
