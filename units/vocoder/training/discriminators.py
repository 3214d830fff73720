"""HiFi-GAN's discriminators and its losses (Kong et al. 2020, arXiv 2010.05646, sections 2.3 and 3.3).

B batch, T samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, pad
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

PERIODS = (2, 3, 5, 7, 11)  # samples; primes, so that the discriminators' samples overlap as little as possible
SCALES = 3  # the wav, and twice its average over 4 samples
SLOPE = 0.1  # of the leaky ReLUs


@dataclass(frozen=True)
class Scores:
    """The output of one discriminator.

    score: 1 for recorded and 0 for generated audio. features: the outputs of its layers.
    """

    score: Tensor
    features: list[Tensor]

    def halves(self) -> tuple[Scores, Scores]:
        """Split the scores of a batch whose first half is recorded and whose second half is generated."""
        pairs = [x.chunk(2) for x in (self.score, *self.features)]
        first, second = ([pair[i] for pair in pairs] for i in (0, 1))
        return Scores(first[0], first[1:]), Scores(second[0], second[1:])


ScorePairs = list[tuple[Scores, Scores]]  # of each discriminator: on recorded audio, on generated audio


class _Discriminator(nn.Module):
    """A stack of convolutions, and a last one that gives the score."""

    def __init__(self, layers: Sequence[nn.Module], last: nn.Module) -> None:
        super().__init__()
        self.layers, self.last = nn.ModuleList(layers), last

    def scores(self, x: Tensor) -> Scores:
        features = []
        for layer in self.layers:
            x = leaky_relu(layer(x), SLOPE)
            features.append(x)
        x = self.last(x)
        return Scores(x.flatten(1), [*features, x])


class PeriodDiscriminator(_Discriminator):
    """2-d convolutions over the wav in rows of `period` samples: what repeats with the period lies in a column."""

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

    def forward(self, wav: Tensor) -> Scores:
        """Wav (B, 1, T)."""
        missing = -wav.shape[2] % self.period
        return self.scores(pad(wav, (0, missing), mode="reflect").unflatten(2, (-1, self.period)))


class ScaleDiscriminator(_Discriminator):
    """1-d convolutions over the wav, with strides that grow from layer to layer."""

    def __init__(self, divisor: int, norm: Callable[[nn.Module], nn.Module] = weight_norm) -> None:
        widths = [1, *(width // divisor for width in (128, 128, 256, 512, 1024, 1024, 1024))]
        kernels, strides, groups = (15, 41, 41, 41, 41, 41, 5), (1, 2, 2, 4, 4, 1, 1), (1, 4, 16, 16, 16, 16, 1)
        super().__init__(
            [
                norm(nn.Conv1d(a, b, kernel, stride, kernel // 2, groups=min(group, a)))
                for a, b, kernel, stride, group in zip(widths, widths[1:], kernels, strides, groups)
            ],
            norm(nn.Conv1d(widths[-1], 1, 3, padding=1)),
        )

    def forward(self, wav: Tensor) -> Scores:
        """Wav (B, 1, T)."""
        return self.scores(wav)


class Discriminators(nn.Module):
    """All eight discriminators: five of periods, three of scales, the first of these with spectral norm."""

    def __init__(self, divisor: int = 1) -> None:
        super().__init__()
        self.periods = nn.ModuleList(PeriodDiscriminator(period, divisor) for period in PERIODS)
        self.scales = nn.ModuleList(
            ScaleDiscriminator(divisor, spectral_norm if i == 0 else weight_norm) for i in range(SCALES)
        )
        self.halve = nn.AvgPool1d(4, 2, padding=2)

    def forward(self, recorded: Tensor, generated: Tensor) -> ScorePairs:
        """Two batches of wavs (B, T) -> the scores of both, for each discriminator."""
        wav = torch.cat([recorded, generated])[:, None]
        found = [discriminator(wav) for discriminator in self.periods]
        for i, discriminator in enumerate(self.scales):
            wav = self.halve(wav) if i else wav
            found.append(discriminator(wav))
        return [scores.halves() for scores in found]


def discriminator_loss(pairs: ScorePairs) -> Tensor:
    """Least squares of the discriminators: recorded audio should score 1, generated audio 0 (equation 1)."""
    losses = [(1 - real.score.float()).square().mean() + fake.score.float().square().mean() for real, fake in pairs]
    return torch.stack(losses).sum()


def generator_loss(pairs: ScorePairs) -> Tensor:
    """Least squares of the generator: generated audio should score 1 (equation 2)."""
    return torch.stack([(1 - fake.score.float()).square().mean() for _, fake in pairs]).sum()


def feature_loss(pairs: ScorePairs) -> Tensor:
    """Feature matching: L1 between the layers' outputs on recorded and on generated audio (equation 4)."""
    features = [pair for real, fake in pairs for pair in zip(real.features, fake.features)]
    return torch.stack([(real.detach() - fake).float().abs().mean() for real, fake in features]).sum()
