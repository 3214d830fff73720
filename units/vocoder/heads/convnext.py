"""The ConvNeXt block of the heads "mel" and "vocos", and of the mel head's duration predictor.

B batch, N frames or units, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LAYER_SCALE = 0.3  # initial value; Vocos starts at 1 / blocks


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, LayerNorm and MLP, scaled and added to the input.

    Source: Vocos (Siuzdak 2023, arXiv 2306.00814), section 3.2.
    """

    def __init__(self, width: int, kernel: int, expansion: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(width, width, (1, kernel), padding=(0, kernel // 2), groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, expansion * width), nn.GELU(), nn.Linear(expansion * width, width))
        self.scale = nn.Parameter(torch.full((width,), LAYER_SCALE))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """One block.

        Args:
            x: (B, N, D), zero in the padding.
            mask: (B, N, 1), zero in the padding.

        Returns: (B, N, D), zero in the padding.
        """
        # a (B, D, 1, N) view of (B, N, D) is the channels-last layout of a 2-d convolution, so nothing is copied
        mixed = self.mix(x.transpose(1, 2)[:, :, None])[:, :, 0].transpose(1, 2)
        return (x + self.scale * self.mlp(self.norm(mixed))) * mask
