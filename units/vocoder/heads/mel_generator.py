"""The head "mel": ConvNeXt blocks predict log-mels from units, and Griffin-Lim makes a wav of them, block by block.

It trains in minutes on a laptop; the waveform heads sound more natural. Padding never changes a result: every block
reads zeros beyond the end of a row, as it does when the row is alone.

B batch, U units of a row, N frames (50 a second), M mels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from units.vocoder.heads.configs import MelGeneratorConfig
from units.vocoder.heads.convnext import ConvNeXtBlock, ConvNeXtStream
from units.vocoder.heads.duration_predictors import Context, ConvNeXtDurationPredictor
from units.vocoder.heads.frames import Frames, run_frames
from units.vocoder.heads.mel_blocks import AHEAD, MelBlocks
from units.vocoder.mel import MelSpectrogram


class MelGenerator(nn.Module):
    """Units laid out in time -> log-mels -> wav."""

    def __init__(self, num_units: int, config: MelGeneratorConfig) -> None:
        super().__init__()
        width = config.width
        self.block = config.block_frames
        # unit frames to each side that the log-mels of a frame depend on
        self.reach = config.kernel // 2 * config.slow_blocks - (-(config.kernel // 2 * config.fast_blocks) // 2)
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
        """Units laid out in time -> log-mels (B, 2 N, M)."""
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
        """Units to wavs.

        Args:
            rows: (ids, durations) of each row, int64 (U,) each.

        Returns: a wav (sum(durations) * 320,) for each row.
        """
        if self.block:
            return [self._in_blocks(*run_frames(*row)) for row in rows]
        # one row at a time, for the reason given in MelSpectrogram.invert; the network is a tenth of the work
        return self.spectrogram.invert([self.log_mels(*run_frames(*row)) for row in rows])

    def _in_blocks(self, ids: Tensor, runs: Tensor) -> Tensor:
        """Frames of a whole utterance to a wav, as a stream of them gives it."""
        blocks = MelBlocks(self)
        blocks.add(ids, runs)
        return torch.cat([*blocks.sounds(last=True)])

    def log_mels(self, ids: Tensor, runs: Tensor) -> Tensor:
        """Log-mels (2 N, M) of one row: units int64 (N,) and run features (N, 2)."""
        device = self.head.weight.device
        inside = torch.ones(1, len(ids), dtype=torch.bool, device=device)
        return self(Frames(ids[None].to(device), runs[None].to(device), inside))[0]

    def open_stream(self) -> LogMelStream:
        """The log-mels of one row that arrives in pieces."""
        return LogMelStream(self)

    def loss(self, frames: Frames, log_mels: Tensor) -> Tensor:
        """Mean absolute error against log-mels (B, 2 N, M), without the padding."""
        mask = frames.mask.repeat_interleave(2, dim=1)
        error = (self(frames).float() - log_mels).abs().mean(-1)
        return (error * mask).sum() / mask.sum()


class LogMelStream:
    """The log-mels of one row that arrives in pieces; all together they are those of the whole row."""

    def __init__(self, network: MelGenerator) -> None:
        self._network = network
        width, device = network.head.in_features, network.head.weight.device
        self._slow = ConvNeXtStream(network.slow, width, device)  # type: ignore[arg-type]
        self._fast = ConvNeXtStream(network.fast, width, device)  # type: ignore[arg-type]

    def push(self, ids: Tensor, runs: Tensor) -> Tensor:
        """Add units int64 (N,) and run features (N, 2); returns the log-mels (F, M) that they complete."""
        network, device = self._network, self._network.head.weight.device
        x = network.unit(ids.to(device)) + network.run(runs.to(device))
        return self._log_mels(self._fast.push(self._upsampled(self._slow.push(x))))

    def finish(self) -> Tensor:
        """End the row; returns the rest of its log-mels (F, M)."""
        last = self._fast.push(self._upsampled(self._slow.finish()))
        return self._log_mels(torch.cat([last, self._fast.finish()]))

    def _upsampled(self, x: Tensor) -> Tensor:
        return self._network.upsample(x).reshape(2 * len(x), x.shape[1])

    def _log_mels(self, x: Tensor) -> Tensor:
        return self._network.head(self._network.norm(x))


class MelNetwork(nn.Module):
    """The network of a vocoder with the head "mel": generator and duration predictor, for one speaker."""

    has_duration_predictor = True

    def __init__(self, num_units: int, config: MelGeneratorConfig) -> None:
        super().__init__()
        self.generator = MelGenerator(num_units, config)
        self.durations = ConvNeXtDurationPredictor(num_units)
        reach, block = self.generator.reach, config.block_frames
        # None: Griffin-Lim over a whole utterance makes every sample depend on all of it, so nothing can be streamed
        self.context = Context(block + reach, block - 1 + AHEAD // 2 + reach) if block else None

    @property
    def unit_context(self) -> Context:
        """The neighbouring units that a unit's predicted duration depends on."""
        return self.durations.context

    def log_durations(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Units int64 (B, U) and mask bool (B, U) -> log(frames) (B, U)."""
        return self.durations(ids, mask)

    whole_frames = staticmethod(ConvNeXtDurationPredictor.whole_frames)

    def duration_bias(self) -> Tensor:
        """The bias of log(frames): adding x to it multiplies all predicted durations by exp(x)."""
        return self.durations.head.bias

    def synthesise(self, rows: Sequence[tuple[Tensor, Tensor]], speakers: Sequence[int]) -> list[Tensor]:
        """As UnitNetwork.synthesise; there is one speaker, so `speakers` is not read."""
        return self.generator.synthesise(rows)
