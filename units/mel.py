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
OVERLAP = WINDOW // MEL_HOP
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
        envelope = self._overlap_add(mask[..., None] * self.window.square()).clamp(min=1e-8)
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
        return self._overlap_add(frames) * scale

    @staticmethod
    def _overlap_add(frames: Tensor) -> Tensor:
        """(B, F, WINDOW) -> (B, F * 160), the edges cut off."""
        batch, count, _ = frames.shape
        pieces = frames.reshape(batch, count, OVERLAP, MEL_HOP)
        total = frames.new_zeros(batch, count + OVERLAP - 1, MEL_HOP)
        for shift in range(OVERLAP):
            total[:, shift : shift + count] += pieces[:, :, shift]
        return total.flatten(1)[:, EDGE : EDGE + count * MEL_HOP]
