"""The convolutions of HuBERT's front end as matrix products, exact for any length in bounded memory.

A convolution with kernel k and stride s over (T, C) is a sum of ceil(k / s) matrix products over overlapping views of
its input, without copies. HuBERT base normalises its first convolution over the whole wav (GroupNorm with one channel a
group). As that convolution is linear, mean and variance of its output follow from the second moments of its input
windows. So a wav of any length is normalised exactly before any of it is convolved, and independently of other wavs.

T samples, N frames, C channels, k kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from units.audio import FrameGrid

PIECE = 8_000  # windows of the first convolution at once (2.5 s at HuBERT's stride): fits a core's cache
GPU_PIECE = 16 * PIECE  # a GPU is faster with fewer and larger products
MOMENTS_PIECE = 1 << 20  # windows whose second moments are summed at once


@dataclass
class Convolution:
    """One layer: weight (k * C, C'), input first; then a LayerNorm over channels where there is one; then GELU."""

    weight: Tensor
    bias: Tensor | None
    kernel: int
    stride: int
    norm: nn.LayerNorm | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """(T, C) -> (T', C')."""
        return self.activate(strided_product(x, self.weight, self.bias, self.kernel, self.stride))

    def activate(self, x: Tensor) -> Tensor:
        # the norm in float32, as its weights: CUDA does not mix dtypes there
        return functional.gelu(x if self.norm is None else self.norm(x.float()).to(x.dtype))


class ConvFrontEnd:
    """wav (T,) -> (N, C) of the last convolution, for transformers' `feature_extractor` of HuBERT and wav2vec 2.0."""

    def __init__(self, feature_extractor: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        """Take over the weights; all but the first convolution are computed in `dtype`.

        Raises: ValueError if a GroupNorm has more than one channel a group, or is not the first layer's.
        """
        self.layers: list[Convolution] = []
        self.group_norm: nn.GroupNorm | None = None
        for i, layer in enumerate(feature_extractor.conv_layers):
            conv, norm = layer.conv, getattr(layer, "layer_norm", None)
            if isinstance(norm, nn.GroupNorm):
                if norm.num_groups != norm.num_channels or i > 0:
                    raise ValueError(
                        f"convolution {i} has a GroupNorm of {norm.num_groups} groups over {norm.num_channels} "
                        "channels; HuBERT has one, on its first convolution, with one channel a group"
                    )
                self.group_norm, norm = norm, None
            weight = conv.weight.detach().permute(2, 1, 0).flatten(0, 1)  # (k * C, C')
            held = torch.float32 if i == 0 else dtype
            bias = None if conv.bias is None else conv.bias.detach().to(held)
            self.layers.append(
                Convolution(weight.contiguous().to(held), bias, conv.kernel_size[0], conv.stride[0], norm)
            )
        if self.group_norm is not None:  # converted to float64 once, not for every wav
            parts = self.layers[0].weight, self.group_norm.weight.detach(), self.group_norm.bias.detach()
            self._head_in_double = [part.double() for part in parts]
        self.dtype = dtype
        self.grid = FrameGrid.of([(layer.kernel, layer.stride) for layer in self.layers])

    def __call__(self, wav: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """Frames [first, last) of a wav, equal to those of the whole wav: (last - first, C)."""
        return next(self.segments(wav, [(first, self.grid.num_frames(len(wav)) if last is None else last)]))

    def segments(self, wav: Tensor, wanted: list[tuple[int, int]]) -> Iterator[Tensor]:
        """Frames [first, last) of a wav for each pair; the wav's statistics are computed once."""
        head = self._head(wav)
        hop, field = self.grid.hop, self.grid.receptive_field
        piece = PIECE if wav.device.type == "cpu" else GPU_PIECE
        size = max(1, piece * head.stride // hop)  # frames
        for first, last in wanted:
            starts = range(first, last, size)
            yield torch.cat(
                [
                    self._convolve(wav[start * hop : (min(start + size, last) - 1) * hop + field], head)
                    for start in starts
                ]
            )

    def _convolve(self, wav: Tensor, head: Convolution) -> Tensor:
        x = head(wav[:, None]).to(self.dtype)
        for layer in self.layers[1:]:
            x = layer(x)
        return x

    def _head(self, wav: Tensor) -> Convolution:
        """The first convolution with GroupNorm, by this wav's statistics, folded into its weights."""
        head = self.layers[0]
        if self.group_norm is None:
            return head
        windows = wav.unfold(0, head.kernel, head.stride)  # (M, k)
        total = torch.zeros(head.kernel, dtype=torch.float64, device=wav.device)
        squares = torch.zeros(head.kernel, head.kernel, dtype=torch.float64, device=wav.device)
        for start in range(0, len(windows), MOMENTS_PIECE):
            piece = windows[start : start + MOMENTS_PIECE].double()
            total += piece.sum(0)
            squares += piece.T @ piece
        mean = total / len(windows)
        covariance = squares / len(windows) - torch.outer(mean, mean)
        weight, gain, bias = self._head_in_double  # (k, C), (C,), (C,)
        variance = ((covariance @ weight) * weight).sum(0).clamp(min=0)
        scale = gain * torch.rsqrt(variance + self.group_norm.eps)
        bias = bias - (mean @ weight) * scale  # a bias of the convolution itself cancels out
        return Convolution((weight * scale).float(), bias.float(), head.kernel, head.stride)


def strided_product(x: Tensor, weight: Tensor, bias: Tensor | None, kernel: int, stride: int) -> Tensor:
    """Convolution of (T, C), contiguous, by weight (kernel * C, C') with a stride, without padding: (T', C')."""
    channels = x.shape[1]
    count = (len(x) - kernel) // stride + 1
    found: Tensor | None = None
    for tap in range(0, kernel, stride):  # taps of one stride are adjacent in memory
        width = min(stride, kernel - tap)
        rows = x.as_strided((count, width * channels), (stride * channels, 1), x.storage_offset() + tap * channels)
        part = weight[tap * channels : (tap + width) * channels]
        if found is None:
            found = rows @ part if bias is None else torch.addmm(bias, rows, part)
        else:
            found.addmm_(rows, part)
    assert found is not None
    return found
