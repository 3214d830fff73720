"""Duration predictors: the number of frames that each unit lasts, predicted from the unit and its neighbours.

Both follow Lee et al. 2021 (arXiv 2107.05604, section 3.3), who use the variance predictor of FastSpeech 2.

B batch, U units of a row, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from units.vocoder.heads.convnext import ConvNeXtBlock


@dataclass(frozen=True)
class Context:
    """The neighbourhood that one output depends on: frames of 20 ms, or units for a duration predictor.

    left: how many before. right: how many after.
    """

    left: int
    right: int


class ConvNeXtDurationPredictor(nn.Module):
    """The duration predictor of the head "mel": ConvNeXt blocks that predict log(frames)."""

    def __init__(self, num_units: int, width: int = 96, blocks: int = 2, kernel: int = 5) -> None:
        super().__init__()
        self.unit = nn.Embedding(num_units, width)
        self.blocks = nn.ModuleList(ConvNeXtBlock(width, kernel, 3) for _ in range(blocks))
        self.head = nn.Linear(width, 1)
        self.context = Context(blocks * (kernel // 2), blocks * (kernel // 2))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Units int64 (B, U) and mask bool (B, U) -> log(frames) (B, U)."""
        x = self.unit(ids) * mask[..., None]
        for block in self.blocks:
            x = block(x, mask[..., None])
        return self.head(x)[..., 0]

    @staticmethod
    def whole_frames(log_durations: Tensor) -> Tensor:
        """Predicted log(frames) -> whole frames, int64, at least one."""
        return log_durations.float().exp().round().clamp(min=1).long()

    def loss(self, ids: Tensor, durations: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error of log(frames), without the padding. All arguments are (B, U)."""
        error = (self(ids, mask).float() - durations.clamp(min=1).log()).square()
        return (error * mask).sum() / mask.sum()


class PublishedDurationPredictor(nn.Module):
    """The duration predictor of the waveform heads: two convolutions with LayerNorm that predict log(1 + frames).

    Source: the layout is that of fairseq's fastspeech2.py, so that published weights load.
    """

    def __init__(self, width_in: int, width: int, kernel: int, dropout: float) -> None:
        super().__init__()
        same = kernel // 2
        self.conv1 = nn.Sequential(nn.Conv1d(width_in, width, kernel, padding=same), nn.ReLU())
        self.ln1 = nn.LayerNorm(width)
        self.conv2 = nn.Sequential(nn.Conv1d(width, width, kernel, padding=same), nn.ReLU())
        self.ln2 = nn.LayerNorm(width)
        self.proj = nn.Linear(width, 1)
        self.dropout = nn.Dropout(dropout)
        self.context = Context(2 * same, 2 * same)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Embeddings (B, U, C) and mask bool (B, U) -> log(1 + frames) (B, U)."""
        inside = mask[..., None]
        x = self.conv1((x * inside).transpose(1, 2)).transpose(1, 2)
        x = self.dropout(self.ln1(x)) * inside
        x = self.conv2(x.transpose(1, 2)).transpose(1, 2)
        return self.proj(self.dropout(self.ln2(x)))[..., 0]

    @staticmethod
    def whole_frames(log_durations: Tensor) -> Tensor:
        """Predicted log(1 + frames) -> whole frames, int64, at least one."""
        return (log_durations.float().exp() - 1).round().clamp(min=1).long()
