"""Random vocoders whose output depends on every unit; HiFi-GAN as initialised hardly depends on its input."""

from __future__ import annotations

import random

import torch

from units.codebook import Codebook, Units
from units.vocoder.heads.configs import HifiGanConfig, UnitNetworkConfig, VocosConfig
from units.vocoder.unit_vocoder import UnitVocoder

K = 12
CODEBOOK = Codebook("tiny", "mfcc", 0, K, 50.0, "utterance", "0123abcd")
SMALL = {"embedding_dim": 8, "duration_width": 8}
HIFIGAN = HifiGanConfig(upsample_initial_channel=32, **SMALL)
# three speakers, and other strides, kernels and dilations than the published ones
ODD_HIFIGAN = HifiGanConfig(
    upsample_rates=(8, 5, 8),
    upsample_kernel_sizes=(16, 5, 10),
    upsample_initial_channel=16,
    resblock_kernel_sizes=(5,),
    resblock_dilation_sizes=((2, 4),),
    num_speakers=3,
    duration_kernel=5,
    **SMALL,
)
VOCOS = VocosConfig(width=16, blocks=2, **SMALL)
MANY_VOCOS = VocosConfig(width=16, blocks=1, kernel=5, num_speakers=3, **SMALL)
HEADS = {"hifigan": HIFIGAN, "odd_hifigan": ODD_HIFIGAN, "vocos": VOCOS, "many_vocos": MANY_VOCOS}


def loud_vocoder(settings: UnitNetworkConfig, seed: int = 0, codebook: Codebook = CODEBOOK) -> UnitVocoder:
    """A random vocoder whose output is neither near silence nor clipped."""
    torch.manual_seed(seed)
    vocoder = UnitVocoder(codebook, settings).eval()
    with torch.no_grad():
        for name, weight in vocoder.network.named_parameters():
            if weight.dim() > 1 and "dur_predictor" not in name:
                fan_in = weight[0].numel() if "ups." not in name else weight.shape[0] * 2
                weight.normal_(0, fan_in**-0.5)
            if name == "dur_predictor.proj.bias":
                weight.fill_(1.5)  # three or four frames a unit
            if name == "dur_predictor.proj.weight":
                weight.normal_(0, 0.3)
    return vocoder


def draw_units(draw: random.Random, longest: int = 30, known: bool = True) -> Units:
    """Random units, up to `longest`, with durations if `known`."""
    count = draw.randint(1, longest)
    ids, durations = (tuple(draw.choices(values, k=count)) for values in (range(K), (1, 1, 2, 3, 5, 9)))
    return Units(ids, durations if known else None, CODEBOOK)
