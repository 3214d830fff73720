"""What every waveform network has in common: embeddings of units and speakers, and the published duration predictor.

The parts are named as in fairseq's CodeHiFiGAN (`dict`, `spkr`, `dur_predictor`), so its weights load as they are.

B batch, U units of a row, N frames (50 a second), C channels.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from units.audio import HOP
from units.vocoder.heads.configs import UnitNetworkConfig
from units.vocoder.heads.duration_predictors import Context, VariancePredictor


class UnitNetwork(nn.Module, ABC):
    """Units laid out in time to sound. A subclass says how: `forward`, and how far it looks: `context`."""

    context: Context
    precision = torch.float32  # of the convolutions when it speaks; durations are always predicted in float32

    def __init__(self, num_units: int, config: UnitNetworkConfig) -> None:
        super().__init__()
        self.dict = nn.Embedding(num_units, config.embedding_dim)
        self.spkr = nn.Embedding(config.num_speakers, config.embedding_dim) if config.num_speakers else None
        self.dur_predictor = (
            VariancePredictor(
                config.embedding_dim, config.duration_width, config.duration_kernel, config.duration_dropout
            )
            if config.duration_width
            else None
        )

    @abstractmethod
    def forward(self, ids: Tensor, speakers: Tensor, mask: Tensor | None = None) -> Tensor:
        """Sound of rows of frames.

        Args:
            ids: int64 (B, N), the unit of each frame. speakers: int64 (B,), not looked at by a network of one voice.
            mask: bool (B, N), False in the padding; None where all rows are equally long.

        Returns: wav (B, N * 320), zero in the padding.
        """

    def folded(self) -> UnitNetwork:
        """A copy for use, without what only training needs."""
        return copy.deepcopy(self)

    def embed(self, ids: Tensor, speakers: Tensor) -> Tensor:
        """What the network reads of each frame, (B, C, N): unit first, then speaker, as published."""
        x = self.dict(ids)
        if self.spkr is not None:
            x = torch.cat([x, self.spkr(speakers)[:, None].expand_as(x)], dim=2)
        return x.transpose(1, 2)

    def log_durations(self, ids: Tensor, mask: Tensor) -> Tensor:
        """log(1 + frames) of units int64 (B, U) with mask bool (B, U). Raises ValueError without a predictor."""
        if self.dur_predictor is None:
            raise ValueError("this vocoder has no duration predictor: give it units with durations")
        return self.dur_predictor(self.dict(ids), mask)

    @staticmethod
    def whole_frames(log_durations: Tensor) -> Tensor:
        """Log durations as predicted -> whole frames, at least one, int64."""
        return (log_durations.float().exp() - 1).round().clamp(min=1).long()

    def duration_bias(self) -> Tensor:
        """The scalar that lengthens all durations by a factor e when it grows by one."""
        assert self.dur_predictor is not None
        return self.dur_predictor.proj.bias

    def duration_loss(self, ids: Tensor, durations: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error of log(1 + frames), padding left out (arXiv 2107.05604, section 3.3)."""
        error = (self.log_durations(ids, mask).float() - durations.float().log1p()).square()
        return (error * mask).sum() / mask.sum()

    @property
    def unit_context(self) -> Context:
        """Neighbours that decide a unit's predicted duration."""
        return self.dur_predictor.context if self.dur_predictor is not None else Context(0, 0)

    def synthesise(self, rows: Sequence[tuple[Tensor, Tensor]], speakers: Sequence[int]) -> list[Tensor]:
        """Ids and durations, int64 (U,) each, of each row -> wav (sum(durations) * 320,) of each."""
        device = self.dict.weight.device
        frames = [ids.repeat_interleave(durations) for ids, durations in rows]
        counts = torch.tensor([len(one) for one in frames])
        ids = nn.utils.rnn.pad_sequence(frames, batch_first=True)
        even = bool((counts == ids.shape[1]).all())
        mask = None if even else (torch.arange(ids.shape[1]) < counts[:, None]).to(device)
        half = self.precision != torch.float32
        # cuDNN would quietly round float32 to 10 bits: a batch would no longer be its rows within 1e-4
        with (
            torch.backends.cudnn.flags(enabled=True, allow_tf32=half),
            torch.autocast(device.type, self.precision, half),
        ):
            wavs = self(ids.to(device), torch.tensor(list(speakers), device=device), mask)
        return [wav[: int(count) * HOP].float() for wav, count in zip(wavs, counts)]
