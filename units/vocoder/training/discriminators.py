"""HiFi-GAN's judges of sound, and what a generator learns from them (Kong et al. 2020, arXiv 2010.05646, sections 2.3, 3.3).

B batch, T samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, pad
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

PERIODS = (2, 3, 5, 7, 11)  # samples; primes, so that no two judges see the same grid
SCALES = 3  # the wav, and twice its average over 4 samples
SLOPE = 0.1


@dataclass(frozen=True)
class Verdict:
    """One judge's opinion: scores, 1 for recorded and 0 for made, and what each of its layers saw."""

    score: Tensor
    features: list[Tensor]

    def halves(self) -> tuple[Verdict, Verdict]:
        """Of a batch whose first half was recorded and whose second half was made."""
        pairs = [x.chunk(2) for x in (self.score, *self.features)]
        first, second = ([pair[i] for pair in pairs] for i in (0, 1))
        return Verdict(first[0], first[1:]), Verdict(second[0], second[1:])


class _Judge(nn.Module):
    """A stack of convolutions and a last one that scores."""

    def __init__(self, layers: Sequence[nn.Module], last: nn.Module) -> None:
        super().__init__()
        self.layers, self.last = nn.ModuleList(layers), last

    def judge(self, x: Tensor) -> Verdict:
        features = []
        for layer in self.layers:
            x = leaky_relu(layer(x), SLOPE)
            features.append(x)
        x = self.last(x)
        return Verdict(x.flatten(1), [*features, x])


class PeriodJudge(_Judge):
    """Sees each p-th sample side by side, so that what repeats with period p stands in a column."""

    def __init__(self, period: int, divisor: int) -> None:
        widths = [1, *(width // divisor for width in (32, 128, 512, 1024, 1024))]
        strides = (3, 3, 3, 3, 1)
        super().__init__(
            [
                weight_norm(nn.Conv2d(a, b, (5, 1), (stride, 1), (2, 0)))
                for a, b, stride in zip(widths, widths[1:], strides)
            ],
            weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0))),
        )
        self.period = period

    def forward(self, wav: Tensor) -> Verdict:
        """Wav (B, 1, T)."""
        missing = -wav.shape[2] % self.period
        return self.judge(pad(wav, (0, missing), mode="reflect").unflatten(2, (-1, self.period)))


class ScaleJudge(_Judge):
    """Sees the samples in a row, in steps that grow from layer to layer."""

    def __init__(self, divisor: int, norm=weight_norm) -> None:
        widths = [1, *(width // divisor for width in (128, 128, 256, 512, 1024, 1024, 1024))]
        kernels, strides, groups = (15, 41, 41, 41, 41, 41, 5), (1, 2, 2, 4, 4, 1, 1), (1, 4, 16, 16, 16, 16, 1)
        super().__init__(
            [
                norm(nn.Conv1d(a, b, kernel, stride, kernel // 2, groups=min(group, a)))
                for a, b, kernel, stride, group in zip(widths, widths[1:], kernels, strides, groups)
            ],
            norm(nn.Conv1d(widths[-1], 1, 3, padding=1)),
        )

    def forward(self, wav: Tensor) -> Verdict:
        """Wav (B, 1, T)."""
        return self.judge(wav)


class Discriminators(nn.Module):
    """All judges: five of periods, three of scales, the first of these with spectral norm."""

    def __init__(self, divisor: int = 1) -> None:
        super().__init__()
        self.periods = nn.ModuleList(PeriodJudge(period, divisor) for period in PERIODS)
        self.scales = nn.ModuleList(
            ScaleJudge(divisor, spectral_norm if i == 0 else weight_norm) for i in range(SCALES)
        )
        self.halve = nn.AvgPool1d(4, 2, padding=2)

    def forward(self, recorded: Tensor, made: Tensor) -> list[tuple[Verdict, Verdict]]:
        """Two batches of wavs (B, T) -> each judge's verdict on the first and on the second."""
        wav = torch.cat([recorded, made])[:, None]
        verdicts = [judge(wav) for judge in self.periods]
        for i, judge in enumerate(self.scales):
            wav = self.halve(wav) if i else wav
            verdicts.append(judge(wav))
        return [verdict.halves() for verdict in verdicts]


def discriminator_loss(verdicts: list[tuple[Verdict, Verdict]]) -> Tensor:
    """Least squares: recorded sound should score 1, made sound 0 (equation 1)."""
    losses = [(1 - real.score.float()).square().mean() + fake.score.float().square().mean() for real, fake in verdicts]
    return torch.stack(losses).sum()


def generator_loss(verdicts: list[tuple[Verdict, Verdict]]) -> Tensor:
    """Least squares: made sound should score 1 (equation 2)."""
    return torch.stack([(1 - fake.score.float()).square().mean() for _, fake in verdicts]).sum()


def feature_loss(verdicts: list[tuple[Verdict, Verdict]]) -> Tensor:
    """L1 between what each layer saw of recorded and of made sound (equation 4)."""
    pairs = [pair for real, fake in verdicts for pair in zip(real.features, fake.features)]
    return torch.stack([(real.detach() - fake).float().abs().mean() for real, fake in pairs]).sum()
