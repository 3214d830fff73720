"""DNSMOS P.835 and P.808, and PLCMOS: estimates of listeners' opinions from 1 to 5, by networks that speechmos carries.

    opinions = Dnsmos().scores(load_wav("answer.wav"))      # {"overall": 2.94, "signal": 3.46, "background": 3.58, ..}

Both were trained on recordings of calls. They hear noise, distortion and gaps; they do not tell a natural voice from a
synthetic one. Only the weights of the package are used (`pip install '.[signal]'`): its own programs start a thread per
core, and PLCMOS there draws its raters anew at every call, so that no figure could be repeated.

Sources: Reddy et al., arXiv 2110.01763 (P.835) and 2010.15258 (P.808); Diener et al., arXiv 2305.15127 (PLCMOS). Equal
to speechmos 0.0.1.1, dnsmos.py and plcmos.py, which the tests compare with.
"""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from eval.test_set import NotMeasured
from units.audio import SAMPLE_RATE

PACKAGE = "speechmos"
SEGMENT = 9.01  # seconds that DNSMOS hears at once; a shorter wav is repeated
# Polynomials from a network's output to the scale of listeners, highest power first.
CALIBRATION = {
    "signal": (-0.08397278, 1.22083953, 0.0052439),
    "background": (-0.13166888, 1.60915514, -0.39604546),
    "overall": (-0.06766283, 1.11546468, 0.04602535),
}
MELS, MEL_WINDOW, MEL_HOP = 120, 321, 160  # samples
RATERS = 15  # listeners whom PLCMOS imagines, and over whom it averages
RATER_SIZE = 64
SPECTRUM, SPECTRUM_HOP = 512, 256  # samples
FLOOR = -120.0  # dB below the quietest bin, for bins without energy


def version() -> str:
    """The package and its version.

    Raises:
        NotMeasured: speechmos or onnxruntime is not installed.
    """
    if missing := [name for name in (PACKAGE, "onnxruntime") if importlib.util.find_spec(name) is None]:
        raise NotMeasured(f"{' and '.join(missing)} not installed: pip install '.[signal]'")
    return f"{PACKAGE} {metadata.version(PACKAGE)}"


class Dnsmos:
    """DNSMOS: P.835 (signal, background, overall) and P.808 (overall).

    Raises:
        NotMeasured: speechmos is not installed.
    """

    def __init__(self) -> None:
        self._p835 = _session("dnsmos_models/sig_bak_ovr.onnx")
        self._p808 = _session("dnsmos_models/model_v8.onnx")

    def scores(self, wav: np.ndarray) -> dict[str, float]:
        """The means over the segments of a wav (T,) at 16 kHz that is not empty: signal, background, overall, p808."""
        found = [self._segment(segment) for segment in segments(wav)]
        return {name: float(np.mean([one[name] for one in found])) for name in found[0]}

    def _segment(self, wav: np.ndarray) -> dict[str, float]:
        raw = self._p835.run(None, {"input_1": wav[None].astype(np.float32)})[0][0]
        found = {name: float(np.polyval(powers, x)) for (name, powers), x in zip(CALIBRATION.items(), raw)}
        found["p808"] = float(self._p808.run(None, {"input_1": _mels(wav[:-MEL_HOP])[None]})[0][0][0])
        return found


def segments(wav: np.ndarray) -> list[np.ndarray]:
    """The segments of 9.01 s that DNSMOS hears, one a second; a wav that is shorter is doubled until it is not."""
    length = int(SEGMENT * SAMPLE_RATE)
    while len(wav) < length:
        wav = np.concatenate([wav, wav])
    starts = range(int(np.floor(len(wav) / SAMPLE_RATE) - SEGMENT) + 1)
    found = [wav[second * SAMPLE_RATE : int((second + SEGMENT) * SAMPLE_RATE)] for second in starts]
    return [one for one in found if len(one) >= length]


class Plcmos:
    """PLCMOS 2: how disturbing gaps and their repair are. Its raters are the same for every wav.

    Raises:
        NotMeasured: speechmos is not installed.
    """

    def __init__(self) -> None:
        self._network = _session("plcmos_models/plcmos_v2.onnx")
        self._raters = np.random.default_rng(0).normal(size=(RATERS, 1, RATER_SIZE)).astype(np.float32)

    def score(self, wav: np.ndarray) -> float:
        """The mean over the raters for a wav (T,) at 16 kHz that is not empty."""
        spectrum = log_spectrum(wav)[None, None]
        found = [self._network.run(None, {"degraded_audio": spectrum, "rater_embed": one})[0] for one in self._raters]
        return float(np.mean(found))


def log_spectrum(wav: np.ndarray) -> np.ndarray:
    """PLCMOS's input: natural log power over 20 of windows of 32 ms, float32 (F, 257)."""
    frames = -(-(len(wav) + SPECTRUM - SPECTRUM_HOP) // SPECTRUM_HOP)
    before = SPECTRUM - SPECTRUM_HOP
    padded = np.zeros((frames - 1) * SPECTRUM_HOP + SPECTRUM, wav.dtype)
    padded[before : before + len(wav)] = wav
    windows = np.lib.stride_tricks.sliding_window_view(padded, SPECTRUM)[::SPECTRUM_HOP]
    amplitude = np.abs(np.fft.rfft(windows * np.hamming(SPECTRUM + 1)[:-1]))
    power = amplitude**2
    heard = power > 0
    logs = np.full(power.shape, np.log(power[heard].min()) + FLOOR / 10 * np.log(10))
    logs[heard] = np.log(power[heard])
    return (logs / 20).astype(np.float32)


def _mels(wav: np.ndarray) -> np.ndarray:
    import librosa

    powers = librosa.feature.melspectrogram(y=wav, sr=SAMPLE_RATE, n_fft=MEL_WINDOW, hop_length=MEL_HOP, n_mels=MELS)
    return ((librosa.power_to_db(powers, ref=np.max) + 40) / 40).T.astype(np.float32)


def _session(name: str) -> Any:
    version()
    import onnxruntime
    import torch

    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None and spec.origin is not None  # version() has found it
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(Path(spec.origin).parent / name, options, providers=["CPUExecutionProvider"])
