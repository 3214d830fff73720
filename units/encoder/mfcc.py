"""MFCC features at the frame rate of HuBERT: the targets of its iteration 0, and the baseline `--encoder mfcc`.

HuBERT (Hsu et al. 2021, arXiv 2106.07447, section IV-B) clusters 39-dimensional MFCCs for its first targets. Here: nine
cepstra with first and second differences, mean-normalised per utterance, energy weighted down and differences up; they
carry less of the speaker than the 39 do.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from units.audio import HUBERT_GRID, RECEPTIVE_FIELD, SAMPLE_RATE

CEPSTRA = 9
MELS = 40
HOP_10MS = 160  # samples
FFT = 512
DELTA_REACH = 3  # frames of 10 ms on either side
ENERGY_WEIGHT = 0.5
DELTA_WEIGHTS = (1.0, 2.0, 4.0)  # for the cepstra, their first and their second differences


class MfccFeatures:
    """Turns wavs into MFCC frames of width 27, 50 a second, aligned with HuBERT's.

    Same interface as `units.encoder.hubert.HubertFeatures`.
    """

    name = "mfcc"
    dim = 3 * CEPSTRA
    layer = 0
    grid = HUBERT_GRID
    device = torch.device("cpu")
    manner = "float32"

    def __init__(self) -> None:
        import librosa
        import scipy.fft

        mel = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=FFT, n_mels=MELS, fmin=60, fmax=7600)
        self._mel = torch.from_numpy(mel.T.copy())
        self._dct = torch.from_numpy(scipy.fft.dct(np.eye(MELS), norm="ortho")[:, :CEPSTRA].astype(np.float32))
        self._window = torch.hann_window(RECEPTIVE_FIELD)
        reach = torch.arange(-DELTA_REACH, DELTA_REACH + 1, dtype=torch.float32)
        self._slope = (reach / (reach**2).sum()).view(1, 1, -1)

    def __call__(self, wavs: list[np.ndarray]) -> list[Tensor]:
        """One float32 (N, 27) for each wav (T,), N = num_frames(T)."""
        return [self._one(torch.from_numpy(wav)) for wav in wavs]

    def _one(self, wav: Tensor) -> Tensor:
        wav = torch.cat([wav[:1], wav[1:] - 0.97 * wav[:-1]])
        frames = wav.unfold(0, RECEPTIVE_FIELD, HOP_10MS)
        power = torch.fft.rfft(frames * self._window, n=FFT).abs().square()
        cepstra = torch.log(power @ self._mel + 1e-6) @ self._dct
        cepstra[:, 0] *= ENERGY_WEIGHT
        parts = [cepstra]
        for _ in range(2):
            parts.append(self._difference(parts[-1]))
        stacked = torch.cat([weight * part for weight, part in zip(DELTA_WEIGHTS, parts)], dim=1)[::2]
        return stacked - stacked.mean(dim=0)

    def _difference(self, x: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(x.T.unsqueeze(1), (DELTA_REACH, DELTA_REACH), mode="replicate")
        return torch.nn.functional.conv1d(padded, self._slope).squeeze(1).T
