"""The head "vocos": ConvNeXt blocks at 50 frames a second and an inverse STFT (Vocos, Siuzdak 2023, arXiv 2306.00814).

Vocos reads mels; this head reads units, and has one frame for each unit frame. So no layer runs above 50 Hz, and one
matrix product and one FFT a frame make the wav. It is the fastest head on a CPU.

B batch, N frames (50 a second), C channels, D width, S spectrum bins.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from units.audio import HOP
from units.vocoder.heads.configs import VocosConfig
from units.vocoder.heads.convnext import ConvNeXtBlock
from units.vocoder.heads.duration_predictors import Context
from units.vocoder.heads.unit_network import UnitNetwork
from units.vocoder.mel import overlap_add

WINDOW = 4 * HOP  # samples: 80 ms, so each frame overlaps with three others
LOUDEST = 100.0  # largest magnitude of a bin; keeps exp() finite, as in Vocos


class Vocos(UnitNetwork):
    """Units laid out in time -> magnitudes and phases of overlapping windows -> wav."""

    def __init__(self, num_units: int, config: VocosConfig) -> None:
        super().__init__(num_units, config)
        self.config = config
        reach = config.kernel // 2
        self.enter = nn.Conv1d(config.input_dim, config.width, config.kernel, padding=reach)
        self.enter_norm = nn.LayerNorm(config.width, eps=1e-6)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(config.width, config.kernel, config.expansion) for _ in range(config.blocks)
        )
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.head = nn.Linear(config.width, WINDOW + 2)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        # a sample lies in the windows of four frames, at most two before and two after its frame
        frames = reach * (config.blocks + 1) + WINDOW // HOP // 2
        self.context = Context(left=frames, right=frames)

    def forward(self, ids: Tensor, speakers: Tensor, mask: Tensor | None = None) -> Tensor:
        """As UnitNetwork.forward."""
        if mask is None:
            mask = torch.ones_like(ids, dtype=torch.bool)
        inside = mask[..., None]
        x = self.enter(self.embed(ids, speakers) * mask[:, None]).transpose(1, 2)
        x = self.enter_norm(x) * inside
        for block in self.blocks:
            x = block(x, inside)
        magnitude, phase = self.head(self.norm(x)).float().chunk(2, dim=-1)  # (B, N, S) each
        spectrum = torch.polar(magnitude.exp().clamp(max=LOUDEST), phase) * inside
        frames = torch.fft.irfft(spectrum, n=WINDOW) * self.window
        envelope = overlap_add(inside * self.window.square(), HOP)
        wav = overlap_add(frames, HOP) / envelope.clamp(min=1e-8)
        return wav * mask.repeat_interleave(HOP, dim=1)
