"""Log-mel spectrograms at 100 frames a second, and their inverse by fast Griffin-Lim.

Frame j covers the 640 samples around sample 160 j + 80, so a wav of N * 320 samples has exactly 2 N frames, and the
inverse of 2 N frames has exactly N * 320 samples.

B batch, T samples, F mel frames (two for each unit frame), M mels, S spectrum bins.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from units.audio import HOP, SAMPLE_RATE

MEL_HOP = HOP // 2  # samples: 10 ms
WINDOW = 4 * MEL_HOP  # samples: 40 ms
EDGE = (WINDOW - MEL_HOP) // 2  # samples by which the first and the last frame reach beyond the wav
FFT = 1024
FLOOR = 1e-3  # smallest mel magnitude
SHARPEN = 1.2  # exponent on the magnitudes: the mel filters and the L1 loss blur the harmonics
SPEECH_LEVEL = 20.0  # spectrum magnitude: sharpening around it keeps the energy of speech at the usual levels
MOMENTUM = 0.9  # of fast Griffin-Lim
TINY = 1e-18  # beside the square of a magnitude that may be 0
PHASE_FRAMES = 512  # the table of starting phases repeats after this many frames


class MelSpectrogram(nn.Module):
    """The log-mel transform of the head "mel" and its inverse. It holds constants only; nothing of it is saved."""

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
        """Log-mels to wavs by fast Griffin-Lim from fixed phases.

        The same log-mels give the same wav, alone or in a batch.

        Args:
            rows: log-mels (F, M) of each row.

        Returns: a wav (F * 160,) for each row, within [-1, 1].

        Source: Perraudin, Balazs and Sondergaard 2013, A fast Griffin-Lim algorithm.
        """
        # Griffin-Lim amplifies a rounding error a thousandfold, and matrix products round differently in another batch
        # shape. So magnitudes are computed one row at a time; the FFTs, most of the work, treat each frame alone.
        magnitudes = [self._magnitudes(log_mels) for log_mels in rows]
        counts = torch.tensor([len(one) for one in magnitudes], device=self.window.device)
        target = nn.utils.rnn.pad_sequence(magnitudes, batch_first=True)  # (B, F, S)
        mask = torch.arange(target.shape[1], device=target.device) < counts[:, None]
        found = self._griffin_lim(target, mask)
        wavs = [wav[: len(one) * MEL_HOP] for wav, one in zip(found, magnitudes)]
        return [wav / wav.abs().max().clamp(min=1) for wav in wavs]

    def _magnitudes(self, log_mels: Tensor) -> Tensor:
        """Log-mels (F, M) -> spectrum magnitudes (F, S), sharpened without a change of energy."""
        plain = (log_mels.exp() @ self.inverse).clamp(min=1e-5)
        sharp = plain**SHARPEN
        return sharp * (plain.square().sum() / sharp.square().sum()).sqrt()

    def _griffin_lim(self, target: Tensor, mask: Tensor) -> Tensor:
        """Magnitudes (B, F, S), zero where the mask (B, F) is False -> wav (B, F * 160)."""
        scale = self._scale(mask)
        phase = self._phases(0, target.shape[1]).expand(target.shape)
        return self._refined(target, phase, scale, target.new_zeros(len(target), 0))

    def block_magnitudes(self, log_mels: Tensor) -> Tensor:
        """Log-mels (F, M) -> sharpened magnitudes (F, S), each frame for itself."""
        plain = (log_mels.exp() @ self.inverse).clamp(min=1e-5)
        return plain * (plain / SPEECH_LEVEL) ** (SHARPEN - 1)

    def continued(self, target: Tensor, before: Tensor, fixed: int, frame: int) -> Tensor:
        """Invert magnitudes by fast Griffin-Lim, continuing a wav.

        Args:
            target: magnitudes (F, S).
            before: the first samples (T,), where phases start from; T is a multiple of 160, at most F * 160.
            fixed: how many of these samples must stay as they are.
            frame: the utterance's number of the first frame; it selects the starting phases of the others.

        Returns: a wav (F * 160,).
        """
        target = target[None]
        scale = self._scale(torch.ones(target.shape[:2], dtype=torch.bool, device=target.device))
        phase = self._phases(frame, target.shape[1])
        known = max(0, len(before) // MEL_HOP - 1)  # the window of the last frame reaches beyond the wav
        if known:
            found = self._analyse(before[None])[0, :known]
            phase = torch.cat([found / (found.abs() + 1e-9), phase[known:]])
        return self._refined(target, phase.expand(target.shape), scale, before[None, :fixed])[0]

    def _refined(self, target: Tensor, phase: Tensor, scale: Tensor, fixed: Tensor) -> Tensor:
        """Fast Griffin-Lim from given phases, complex (B, F, S). The wav (B, F * 160) begins with `fixed` (B, T)."""
        spectrum, last = target * phase, torch.zeros_like(target)
        for _ in range(self.iterations):
            found = self._analyse(_begun(self._synthesise(spectrum, scale), fixed))
            spectrum, last = _with_magnitudes(found + MOMENTUM * (found - last), target), found
        return _begun(self._synthesise(spectrum, scale), fixed)

    def _scale(self, mask: Tensor) -> Tensor:
        """1 / the summed squares of the windows, (B, F * 160), of frames (B, F); zero where the mask is False."""
        envelope = overlap_add(mask[..., None] * self.window.square(), MEL_HOP).clamp(min=1e-8)
        return mask.repeat_interleave(MEL_HOP, dim=1) / envelope

    def _phases(self, frame: int, count: int) -> Tensor:
        """The starting phases, complex (F, S), of `count` frames from an utterance's frame on."""
        return self.phases[torch.arange(frame, frame + count, device=self.phases.device) % PHASE_FRAMES]

    def _analyse(self, wav: Tensor) -> Tensor:
        """Wav (B, T) -> complex spectrum (B, T / 160, S)."""
        frames = nn.functional.pad(wav, (EDGE, EDGE)).unfold(-1, WINDOW, MEL_HOP)
        return torch.fft.rfft(frames * self.window, n=FFT)

    def _synthesise(self, spectrum: Tensor, scale: Tensor) -> Tensor:
        """Least-squares inverse of _analyse (Griffin and Lim 1984, equation 6).

        Args:
            spectrum: complex (B, F, S).
            scale: (B, F * 160), 1 / the summed squares of the windows.
        """
        frames = torch.fft.irfft(spectrum, n=FFT)[..., :WINDOW] * self.window
        return overlap_add(frames, MEL_HOP) * scale


def _with_magnitudes(spectrum: Tensor, magnitudes: Tensor) -> Tensor:
    """A complex spectrum with other magnitudes and its own phases; 0 where it is 0."""
    squares = torch.view_as_real(spectrum).square()  # torch's abs() of complex numbers takes three times as long
    return spectrum * (magnitudes * (squares[..., 0] + squares[..., 1] + TINY).rsqrt())


def _begun(wav: Tensor, fixed: Tensor) -> Tensor:
    """A wav (B, T) whose first samples are `fixed`."""
    return torch.cat([fixed, wav[:, fixed.shape[1] :]], dim=1) if fixed.shape[1] else wav


def overlap_add(frames: Tensor, hop: int) -> Tensor:
    """Add up overlapping frames.

    Args:
        frames: (B, F, W), W a multiple of `hop`.
        hop: samples between the starts of two frames.

    Returns: (B, F * hop); both edges are cut off by the same length.
    """
    batch, count, window = frames.shape
    overlap, edge = window // hop, (window - hop) // 2
    pieces = frames.reshape(batch, count, overlap, hop)
    total = frames.new_zeros(batch, count + overlap - 1, hop)
    for shift in range(overlap):
        total[:, shift : shift + count] += pieces[:, :, shift]
    return total.flatten(1)[:, edge : edge + count * hop]


class LogMel(nn.Module):
    """The log-mels of HiFi-GAN's loss (arXiv 2010.05646, section 3.3), with the values of its published config."""

    fft = 1024  # n_fft
    hop = 256  # hop_size, in samples
    window = 1024  # win_size, in samples
    mels = 80  # num_mels

    def __init__(self) -> None:
        import librosa

        super().__init__()
        basis = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=self.fft, n_mels=self.mels, fmin=0, fmax=SAMPLE_RATE / 2)
        self.register_buffer("basis", torch.from_numpy(basis), persistent=False)  # (M, S)
        self.register_buffer("taper", torch.hann_window(self.window), persistent=False)

    def forward(self, wav: Tensor) -> Tensor:
        """Wav (B, T) -> log-mels (B, M, F), F = T // hop."""
        edge = (self.fft - self.hop) // 2
        padded = nn.functional.pad(wav[:, None].float(), (edge, edge), mode="reflect")[:, 0]
        spectrum = torch.stft(
            padded, self.fft, self.hop, self.window, self.taper, center=False, return_complex=True
        ).abs()
        return (self.basis @ spectrum).clamp(min=1e-5).log()
