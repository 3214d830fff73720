"""Log-mel spectrograms, 100 frames a second, and the way back to a wav by fast Griffin-Lim.

Frame j looks at the 640 samples around sample 160 j + 80, so a wav of N * 320 samples has exactly 2 N frames and the
inverse has exactly N * 320 samples.

B batch, T samples, F mel frames (two for each unit frame), M mels, S spectrum bins.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from units.audio import HOP, SAMPLE_RATE

MEL_HOP = HOP // 2  # samples: 10 ms
WINDOW = 4 * MEL_HOP  # samples: 40 ms
EDGE = (WINDOW - MEL_HOP) // 2  # samples that the first and the last frame see beyond the wav
FFT = 1024
FLOOR = 1e-3  # of a mel magnitude
SHARPEN = 1.2  # exponent on the magnitudes: the mel filters and the L1 loss have blurred the harmonics
MOMENTUM = 0.9
PHASE_FRAMES = 512  # the table of starting phases repeats after this many frames


class MelSpectrogram(nn.Module):
    """The 80-band log-mel transform of a vocoder and its inverse. Holds constants only, nothing that is saved."""

    def __init__(self, mels: int = 80, iterations: int = 40) -> None:
        import librosa

        super().__init__()
        basis = torch.from_numpy(librosa.filters.mel(sr=SAMPLE_RATE, n_fft=FFT, n_mels=mels))  # (M, S)
        phases = torch.rand(PHASE_FRAMES, FFT // 2 + 1, generator=torch.Generator().manual_seed(0)) * 2 * torch.pi
        self.iterations = iterations
        self.register_buffer("basis", basis.T.contiguous(), persistent=False)
        self.register_buffer("inverse", torch.linalg.pinv(basis.double()).float().T.contiguous(), persistent=False)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("phases", torch.polar(torch.ones_like(phases), phases), persistent=False)

    def forward(self, wav: Tensor) -> Tensor:
        """Wav (B, T), T a multiple of 160 -> log-mels (B, T / 160, M)."""
        return (self._analyse(wav).abs() @ self.basis).clamp(min=FLOOR).log()

    def invert(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Log-mels (F, M) of each row -> wav (F * 160,) of each, within [-1, 1].

        Fast Griffin-Lim (Perraudin, Balazs and Sondergaard 2013) from fixed phases: the same mels give the same wav,
        alone or among others.
        """
        # Griffin-Lim amplifies a rounding error a thousandfold, and matrix products round differently in another batch
        # shape, so magnitudes are made a row at a time; FFTs, which do the work, treat each frame alone.
        magnitudes = [self._magnitudes(log_mels) for log_mels in rows]
        counts = torch.tensor([len(one) for one in magnitudes], device=self.window.device)
        target = nn.utils.rnn.pad_sequence(magnitudes, batch_first=True)  # (B, F, S)
        mask = torch.arange(target.shape[1], device=target.device) < counts[:, None]
        found = self._griffin_lim(target, mask)
        wavs = [wav[: len(one) * MEL_HOP] for wav, one in zip(found, magnitudes)]
        return [wav / wav.abs().max().clamp(min=1) for wav in wavs]

    def _magnitudes(self, log_mels: Tensor) -> Tensor:
        """Log-mels (F, M) -> spectrum magnitudes (F, S), sharpened at equal energy."""
        plain = (log_mels.exp() @ self.inverse).clamp(min=1e-5)
        sharp = plain**SHARPEN
        return sharp * (plain.square().sum() / sharp.square().sum()).sqrt()

    def _griffin_lim(self, target: Tensor, mask: Tensor) -> Tensor:
        """Magnitudes (B, F, S), zero where the mask (B, F) is False -> wav (B, F * 160)."""
        envelope = overlap_add(mask[..., None] * self.window.square(), MEL_HOP).clamp(min=1e-8)
        scale = mask.repeat_interleave(MEL_HOP, dim=1) / envelope
        frames = torch.arange(target.shape[1], device=target.device) % PHASE_FRAMES
        phase, last = self.phases[frames].expand(target.shape), torch.zeros_like(target)
        for _ in range(self.iterations):
            found = self._analyse(self._synthesise(target * phase, scale))
            moved = found + MOMENTUM * (found - last)
            phase, last = moved / (moved.abs() + 1e-9), found
        return self._synthesise(target * phase, scale)

    def _analyse(self, wav: Tensor) -> Tensor:
        """(B, T) -> complex (B, T / 160, S)."""
        frames = nn.functional.pad(wav, (EDGE, EDGE)).unfold(-1, WINDOW, MEL_HOP)
        return torch.fft.rfft(frames * self.window, n=FFT)

    def _synthesise(self, spectrum: Tensor, scale: Tensor) -> Tensor:
        """Least-squares inverse of _analyse (Griffin and Lim 1984, equation 6); `scale` is 1 / the windows' energy."""
        frames = torch.fft.irfft(spectrum, n=FFT)[..., :WINDOW] * self.window
        return overlap_add(frames, MEL_HOP) * scale


def overlap_add(frames: Tensor, hop: int) -> Tensor:
    """Frames (B, F, W) set down `hop` samples apart, W a multiple of hop -> (B, F * hop), the edges cut off evenly."""
    batch, count, window = frames.shape
    overlap, edge = window // hop, (window - hop) // 2
    pieces = frames.reshape(batch, count, overlap, hop)
    total = frames.new_zeros(batch, count + overlap - 1, hop)
    for shift in range(overlap):
        total[:, shift : shift + count] += pieces[:, :, shift]
    return total.flatten(1)[:, edge : edge + count * hop]


class LogMel(nn.Module):
    """Log-mels as HiFi-GAN's loss takes them (arXiv 2010.05646, section 3.3), from the keys of its published config."""

    def __init__(
        self, fft: int = 1024, hop: int = 256, window: int = 1024, mels: int = 80, lowest: float = 0.0,
        highest: float = SAMPLE_RATE / 2,
    ) -> None:  # fmt: skip
        import librosa

        super().__init__()
        basis = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=fft, n_mels=mels, fmin=lowest, fmax=highest)
        self.fft, self.hop, self.window = fft, hop, window
        self.register_buffer("basis", torch.from_numpy(basis), persistent=False)  # (M, S)
        self.register_buffer("taper", torch.hann_window(window), persistent=False)

    def forward(self, wav: Tensor) -> Tensor:
        """Wav (B, T) -> log-mels (B, M, F), F = T // hop."""
        edge = (self.fft - self.hop) // 2
        padded = nn.functional.pad(wav[:, None].float(), (edge, edge), mode="reflect")[:, 0]
        spectrum = torch.stft(
            padded, self.fft, self.hop, self.window, self.taper, center=False, return_complex=True
        ).abs()
        return (self.basis @ spectrum).clamp(min=1e-5).log()
