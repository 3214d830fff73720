"""Whose voice: Resemblyzer's speaker encoder, whose weights are read without running a pickle or its package.

    encoder = SpeakerEncoder()
    encoder.embed(wav) @ encoder.embed(recording)      # cosine, from 0 to 1

`pip install --no-deps Resemblyzer` brings the weights (17 MB; its own requirements are not used), or `--signal.speaker`
names a copy of its `pretrained.pt`.

Sources: Wan et al., arXiv 1710.10467; Resemblyzer 0.1.4, voice_encoder.py and audio.py. Equal to it, except that long
pauses stay in the wav: to cut them out needs a package that is no longer built.
"""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.test_set import NotMeasured
from units.audio import SAMPLE_RATE
from units.runtime.provenance import content_hash

PACKAGE, WEIGHTS = "resemblyzer", "pretrained.pt"
MELS, SIZE, LAYERS = 40, 256, 3
WINDOW, HOP = 400, 160  # samples
PART = 160  # frames that the network hears at once: 1.6 s
STEP = 77  # frames between two parts: 1.3 a second
COVERED = 0.75  # share of the last part that is sound; else it is left out
LOUDNESS = -30.0  # dBFS to which quieter wavs are raised


class SpeakerEncoder:
    """Embeds voices.

    Args:
        weights: a copy of Resemblyzer's pretrained.pt; None takes the installed package's.

    Raises:
        NotMeasured: the package is not installed, and no file is given.
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else than these weights.
    """

    def __init__(self, weights: Path | None = None) -> None:
        self.path = weights_file(weights)
        self._lstm, self._linear = _network(self.path)

    def embed(self, wav: np.ndarray) -> np.ndarray:
        """The voice of a wav (T,) at 16 kHz that is not silent: float32 (256,), of length 1."""
        import torch

        wav = _raised(wav)
        starts = parts(len(wav))
        padded = np.zeros(max(len(wav), (starts[-1] + PART) * HOP), np.float32)
        padded[: len(wav)] = wav
        frames = _mels(padded)
        batch = torch.from_numpy(np.stack([frames[start : start + PART] for start in starts]))
        with torch.inference_mode():
            _, (hidden, _) = self._lstm(batch)
            found = torch.relu(self._linear(hidden[-1]))
            found = found / found.norm(dim=1, keepdim=True)
        return mean_voice(found.numpy())


def mean_voice(voices: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """The mean of several voices (256,), of length 1."""
    mean = np.mean(voices, axis=0)
    return mean / np.linalg.norm(mean)


def weights_file(weights: Path | None = None) -> Path:
    """Where the weights are. Raises NotMeasured, FileNotFoundError."""
    if weights is not None:
        if not weights.is_file():
            raise FileNotFoundError(f"there is no {weights}; it is a copy of Resemblyzer's {WEIGHTS}")
        return weights
    spec = importlib.util.find_spec(PACKAGE)
    path = Path(spec.origin).parent / WEIGHTS if spec is not None and spec.origin else None
    if path is None or not path.is_file():
        raise NotMeasured(
            f"there is no speaker encoder: pip install --no-deps Resemblyzer, or --signal.speaker {WEIGHTS}"
        )
    return path


def name_of(weights: Path | None = None) -> str:
    """The encoder and a hash of its weights. Raises as weights_file."""
    return f"Resemblyzer {content_hash({WEIGHTS: weights_file(weights)})}"


def parts(samples: int) -> list[int]:
    """The first frames of the parts of 1.6 s in which a wav of so many samples is heard, at least one."""
    frames = -(-(samples + 1) // HOP)
    starts = list(range(0, max(1, frames - PART + STEP + 1), STEP))
    covered = (samples - starts[-1] * HOP) / (PART * HOP)
    return starts[:-1] if covered < COVERED and len(starts) > 1 else starts


def _network(path: Path) -> tuple[Any, Any]:
    import torch

    lstm, linear = torch.nn.LSTM(MELS, SIZE, LAYERS, batch_first=True), torch.nn.Linear(SIZE, SIZE)
    both = torch.nn.ModuleDict({"lstm": lstm, "linear": linear})
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
        wanted = both.state_dict().keys()
        both.load_state_dict({name: value for name, value in state.items() if name in wanted})
    except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError, AttributeError, EOFError) as error:
        first = (str(error).splitlines() or [""])[0][:120]
        raise ValueError(
            f"{path} does not hold the weights of Resemblyzer's speaker encoder ({type(error).__name__}: {first}); "
            "install the package again, or give another --signal.speaker"
        ) from error
    both.eval()
    return lstm, linear


def _mels(wav: np.ndarray) -> np.ndarray:
    import librosa

    powers = librosa.feature.melspectrogram(y=wav, sr=SAMPLE_RATE, n_fft=WINDOW, hop_length=HOP, n_mels=MELS)
    return powers.astype(np.float32).T


def _raised(wav: np.ndarray) -> np.ndarray:
    """A wav at LOUDNESS, if it is quieter."""
    now = 20 * np.log10(np.sqrt(np.mean(wav.astype(np.float64) ** 2)))
    return wav if now >= LOUDNESS else (wav * 10 ** ((LOUDNESS - now) / 20)).astype(np.float32)
