"""Networks that turn units into sound: how long each unit lasts, and what its frames sound like.

Padding never changes a result: every block sees zeros beyond a row's end, as it does when the row is alone.

B batch, U units of a row, N frames (50 a second), D width, M mels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from units.vocoder.heads.configs import MelGeneratorConfig
from units.vocoder.heads.convnext import ConvNeXtBlock
from units.vocoder.heads.duration_predictors import DurationPredictor
from units.vocoder.heads.frames import Frames
from units.vocoder.mel import MelSpectrogram


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
