"""The head "hifigan", the published unit vocoder: the generator of HiFi-GAN over unit embeddings.

Source: Kong et al. 2020, arXiv 2010.05646. Weights and names are those of fairseq's `hifigan.py` and `codehifigan.py`
with weight norm folded into the weights. At the published sizes a second of audio costs some 8 billion multiply-adds,
nearly all in the residual blocks.

B batch, N frames (50 a second), C channels, S steps of time at some layer's rate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import is_parametrized

from units.audio import HOP
from units.vocoder.heads.configs import HifiGanConfig
from units.vocoder.heads.duration_predictors import Context
from units.vocoder.heads.unit_network import UnitNetwork

SLOPE = 0.1  # of all leaky ReLUs but the last, which has torch's default in every published version
END_KERNEL = 7  # of the first and the last convolution


class ResBlock(nn.Module):
    """Pairs of a dilated and a plain convolution, each with a residual connection (arXiv 2010.05646, appendix A.1)."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=d, padding=d * (kernel // 2)) for d in dilations
        )
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=kernel // 2) for _ in dilations)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """One block.

        Args:
            x: (B, C, S), zero in the padding.
            mask: (B, 1, S), zero in the padding; None without padding.

        Returns: (B, C, S), zero in the padding.
        """
        for dilated, plain in zip(self.convs1, self.convs2):
            inner = _masked(leaky_relu(dilated(leaky_relu(x, SLOPE)), SLOPE), mask)
            x = x + _masked(plain(inner), mask)
        return x


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """Zero the padding, so that a row in a batch reads zeros beyond its end, as it does when it is alone."""
    return x if mask is None else x * mask


class HifiGan(UnitNetwork):
    """Transposed convolutions from 50 Hz up to 16 kHz; the mean of several residual blocks follows each."""

    def __init__(self, num_units: int, config: HifiGanConfig) -> None:
        super().__init__(num_units, config)
        self.config = config
        width = config.upsample_initial_channel
        self.conv_pre = nn.Conv1d(config.input_dim, width, END_KERNEL, padding=END_KERNEL // 2)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes):
            self.ups.append(nn.ConvTranspose1d(width, width // 2, kernel, rate, padding=(kernel - rate) // 2))
            width //= 2
            for block_kernel, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes):
                self.resblocks.append(ResBlock(width, block_kernel, tuple(dilations)))
        self.conv_post = nn.Conv1d(width, 1, END_KERNEL, padding=END_KERNEL // 2)
        for layer in self.convolutions():
            if layer is not self.conv_pre:
                nn.init.normal_(layer.weight, std=0.01)
        self.context = receptive_field(config)

    def convolutions(self) -> list[nn.Module]:
        """The layers that are trained with weight norm."""
        inner = [layer for block in self.resblocks for layer in (*block.convs1, *block.convs2)]
        return [self.conv_pre, *self.ups, *inner, self.conv_post]

    def normalise_weights(self) -> None:
        """Add weight norm to the convolutions, for training."""
        for layer in self.convolutions():
            weight_norm(layer)

    def folded(self) -> HifiGan:
        """A copy without weight norm, for inference; inverse of normalise_weights."""
        state = {name: value for name, value in self.state_dict().items() if ".parametrizations." not in name}
        for name, layer in self.named_modules():
            if is_parametrized(layer, "weight"):
                state[f"{name}.weight"] = layer.weight.detach()
        # a deep copy shares its parametrised class with the original; removing parametrisations would break both
        plain = HifiGan(self.dict.num_embeddings, self.config)
        plain.load_state_dict(state)
        return plain

    def forward(self, ids: Tensor, speakers: Tensor, mask: Tensor | None = None) -> Tensor:
        """As UnitNetwork.forward."""
        inside = None if mask is None else mask[:, None].to(self.dict.weight.dtype)
        x = self.conv_pre(_masked(self.embed(ids, speakers), inside))
        for i, (up, rate) in enumerate(zip(self.ups, self.config.upsample_rates)):
            x = up(leaky_relu(_masked(x, inside), SLOPE))
            inside = None if inside is None else inside.repeat_interleave(rate, dim=2)
            x = _masked(x, inside)
            count = len(self.config.resblock_kernel_sizes)
            x = _mean(self.resblocks[i * count : (i + 1) * count], x, inside)
        return _masked(torch.tanh(self.conv_post(leaky_relu(x))), inside)[:, 0]


def _mean(blocks: nn.ModuleList, x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of the blocks' outputs, summed in place: at 16 kHz a stack of them would not fit into a CPU's caches."""
    total = blocks[0](x, mask)
    for block in blocks[1:]:
        total += block(x, mask)
    return total.div_(len(blocks))


def receptive_field(config: HifiGanConfig) -> Context:
    """The frames before and after a frame that its 320 samples depend on, found by walking back through the layers."""
    first, last = 0, HOP - 1  # time steps of the current layer that the samples depend on
    reach = END_KERNEL // 2
    first, last = first - reach, last + reach
    widest = max(
        (kernel // 2) * (sum(dilations) + len(dilations))
        for kernel, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes)
    )
    for rate, kernel in reversed(list(zip(config.upsample_rates, config.upsample_kernel_sizes))):
        first, last = first - widest, last + widest
        # output o depends on the inputs i with 0 <= o + padding - i * rate < kernel
        padding = (kernel - rate) // 2
        first, last = -((kernel - 1 - padding - first) // rate), (last + padding) // rate
    return Context(left=reach - first, right=last + reach)
