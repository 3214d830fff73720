"""The ConvNeXt block that the heads "mel" and "vocos" are built of.

B batch, N frames or units, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LAYER_SCALE = 0.3  # where Vocos starts at 1 / blocks


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
