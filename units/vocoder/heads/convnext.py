"""The ConvNeXt block of the heads "mel" and "vocos", and of the mel head's duration predictor.

B batch, N frames or units, D width.
"""

from __future__ import annotations

from collections.abc import Iterable

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

    @property
    def edge(self) -> int:
        """How many frames to each side an output depends on."""
        return self.mix.kernel_size[1] // 2

    def inside(self, x: Tensor) -> Tensor:
        """The outputs whose neighbours are all given: (N, D) -> (N - 2 edge, D)."""
        mixed = nn.functional.conv2d(x.T[None, :, None], self.mix.weight, self.mix.bias, groups=self.mix.groups)
        own = x[self.edge : len(x) - self.edge]
        return own + self.scale * self.mlp(self.norm(mixed[0, :, 0].T))


class ConvNeXtStream:
    """Some blocks on one row that arrives in pieces: all outputs together are those of the whole row.

    Nothing is computed twice: each block keeps the frames that its next outputs depend on.
    """

    def __init__(self, blocks: Iterable[ConvNeXtBlock], width: int, device: torch.device) -> None:
        """
        Args:
            blocks: any number; none gives its input back.
            width: D of each of them. device: of their weights.
        """
        self._blocks = list(blocks)
        self._nothing = torch.zeros(0, width, device=device)
        # a row begins behind zeros, as in a padded batch
        self._kept = [self._nothing.new_zeros(block.edge, width) for block in self._blocks]

    def push(self, x: Tensor) -> Tensor:
        """Add frames (N, D); returns the outputs (M, D) that they complete."""
        for number, block in enumerate(self._blocks):
            x = self._next(number, block, x)
        return x

    def finish(self) -> Tensor:
        """End the row; returns the rest of its outputs (M, D)."""
        x = self._nothing
        for number, block in enumerate(self._blocks):
            x = self._next(number, block, torch.cat([x, x.new_zeros(block.edge, x.shape[1])]))
        return x

    def _next(self, number: int, block: ConvNeXtBlock, x: Tensor) -> Tensor:
        x = torch.cat([self._kept[number], x])
        complete = len(x) > 2 * block.edge
        self._kept[number] = x[len(x) - 2 * block.edge :] if complete else x
        return block.inside(x) if complete else x[:0]
