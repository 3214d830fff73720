"""Perturbations that leave every frame in its place: another vocal tract, microphone or room, and noise.

Units should follow the words (Gat et al. 2022, arXiv 2209.15483; R-Spin, arXiv 2311.09117): the network sees a
perturbed crop and predicts the targets of the clean one. Each function takes and returns a wav, float32 (T,).
"""

from __future__ import annotations

import numpy as np
import scipy.fft
import scipy.signal

from units.audio import SAMPLE_RATE

WINDOW, SHIFT = 512, 128  # samples of the analysis
ENVELOPE = 30  # cepstral coefficients: 2 ms, shorter than a period of most voices, so pitch is not in the envelope
NOISE_POLE = 0.95  # of the darkest noise


def other_tract(wav: np.ndarray, warp: float) -> np.ndarray:
    """The same pitch and timing through a vocal tract shorter by `warp`: its formants are that many times as high."""
    padded = np.pad(wav, (WINDOW, WINDOW + -len(wav) % SHIFT)).astype(np.float32)
    hann = scipy.signal.get_window("hann", WINDOW).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::SHIFT] * hann  # (frames, WINDOW)
    spectrum = scipy.fft.rfft(frames)
    log = np.log(np.abs(spectrum) + 1e-4)
    cepstrum = scipy.fft.irfft(log)
    cepstrum[:, ENVELOPE : WINDOW - ENVELOPE + 1] = 0
    envelope = scipy.fft.rfft(cepstrum).real
    at = np.minimum(np.arange(envelope.shape[1]) / warp, envelope.shape[1] - 1)
    low = at.astype(int)
    high, share = np.minimum(low + 1, envelope.shape[1] - 1), (at - low).astype(np.float32)
    moved = envelope[:, low] * (1 - share) + envelope[:, high] * share
    changed = scipy.fft.irfft(spectrum * np.exp(np.clip(moved - envelope, -4, 4)), n=WINDOW) * hann
    out = np.zeros(len(padded), np.float32)
    for part in range(WINDOW // SHIFT):  # frames `part`, `part` + 4, ... do not overlap
        rows = changed[part :: WINDOW // SHIFT]
        out[part * SHIFT : part * SHIFT + rows.size] += rows.ravel().astype(np.float32)
    return out[WINDOW : WINDOW + len(wav)] / 1.5  # four squared Hann windows sum to 1.5


def tilted(wav: np.ndarray, tilt: float) -> np.ndarray:
    """A brighter (tilt above 0) or darker wav: x[t] - tilt x[t-1]."""
    return np.concatenate([wav[:1], wav[1:] - np.float32(tilt) * wav[:-1]])


def echoed(wav: np.ndarray, seconds: float, draw: np.random.Generator) -> np.ndarray:
    """The wav in a random room that decays by 60 dB in `seconds`; the direct sound keeps its place."""
    length = round(seconds * SAMPLE_RATE)
    tail = draw.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
    response = tail * draw.uniform(0.2, 1.0) / np.sqrt(np.sum(tail**2))
    response[0] = 1.0
    wet = scipy.signal.fftconvolve(wav, response.astype(np.float32))[: len(wav)]
    return (wet * (_level(wav) / max(_level(wet), 1e-6))).astype(np.float32)


def over_babble(wav: np.ndarray, other: np.ndarray, ratio: float) -> np.ndarray:
    """The wav with another one of the same length behind it, `ratio` dB quieter."""
    share = _level(wav) / max(_level(other), 1e-6) * 10 ** (-ratio / 20)
    return (wav + share * np.roll(other, len(other) // 2)).astype(np.float32)


def over_noise(wav: np.ndarray, ratio: float, draw: np.random.Generator) -> np.ndarray:
    """The wav with white to dark noise behind it, `ratio` dB quieter."""
    noise = draw.standard_normal(len(wav)).astype(np.float32)
    noise = scipy.signal.lfilter([1.0], [1.0, -draw.uniform(0, NOISE_POLE)], noise)
    return (wav + noise * (_level(wav) * 10 ** (-ratio / 20) / _level(noise))).astype(np.float32)


def _level(wav: np.ndarray) -> float:
    return float(np.sqrt(np.mean(wav**2)))
