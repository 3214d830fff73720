"""The adapter: encoder states to input embeddings of the LLM, at a fraction of the rate.

    states (S, N, D) -> [convolution, gated linear unit] for each kernel -> x + W2 gelu(W1 x) -> layer norm -> (M, H)

With kernels (5, 5, 5) and strides (2, 2, 2), 50 frames a second become 6.25 embeddings a second.
Source: blsp/src/modeling_blsp.py of github.com/cwang621/blsp (f7bf52f).

S sounds of a batch, N frames of a sound, D their width, M embeddings of a sound, H width of the LLM.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from variants.blsp.adapter_shape import AdapterShape


class SpeechAdapter(nn.Module):
    """Subsampler, bottleneck and norm. A sound gives the same embeddings in any batch."""

    def __init__(self, width: int, hidden: int, shape: AdapterShape = AdapterShape(), scale: float = 1.0) -> None:
        """
        Args:
            width: of the encoder states, D. hidden: width of the LLM, H.
            scale: what the norm's gain starts at; 1 as upstream. The deviation of the LLM's word embeddings makes
                speech as loud as words.
        """
        super().__init__()
        self.shape, self.width = shape, width
        widths = [width] * len(shape.kernels) + [hidden]
        self.conv_layers = nn.ModuleList(
            nn.Conv1d(inside, 2 * outside, kernel, stride, padding=kernel // 2)
            for inside, outside, kernel, stride in zip(widths, widths[1:], shape.kernels, shape.strides)
        )
        self.fc1 = nn.Linear(hidden, shape.inner, bias=False)
        self.fc2 = nn.Linear(shape.inner, hidden, bias=False)
        self.norm = nn.LayerNorm(hidden, eps=1e-5)
        nn.init.constant_(self.norm.weight, scale)

    def forward(self, states: Tensor, frames: Tensor) -> Tensor:
        """Embeddings of all sounds, end to end.

        Args:
            states: float (S, N, D), padded at the end. frames: int64 (S,), how many of each sound's are its own.

        Returns: float (sum of M, H).
        """
        subsampled, counts = self.subsample(states, frames)
        inside = torch.arange(subsampled.shape[1], device=counts.device) < counts[:, None]
        return self.norm(self.bottleneck(subsampled[inside]))

    def subsample(self, states: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """The convolutions: float (S, N, D) -> (S, M, H), and how many embeddings each sound has, int64 (S,).

        What lies beyond a sound's end is set to zero before each convolution, as it is when the sound is alone.
        Upstream does so only for the first wav of its length in a batch: the others see their encoder's silence.
        """
        rows = states.to(self.fc1.weight.dtype).transpose(1, 2)
        for layer in self.conv_layers:
            inside = torch.arange(rows.shape[2], device=frames.device) < frames[:, None]
            rows = rows.masked_fill(~inside[:, None], 0)
            rows = functional.glu(layer(rows), dim=1)
            stride = layer.stride[0]
            frames = torch.where(frames > 0, torch.div(frames - 1, stride, rounding_mode="floor") + 1, 0)
        return rows.transpose(1, 2), frames

    def bottleneck(self, rows: Tensor) -> Tensor:
        """x + W2 gelu(W1 x), of embeddings (..., H)."""
        return rows + self.fc2(functional.gelu(self.fc1(rows)))
