"""Audio files in and out. A *wav* here is float32 (T,), mono, 16 kHz, in [-1, 1].

wav = load_wav("question.flac")
save_wav("answer.wav", wav)
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from soundfile import SoundFile

SAMPLE_RATE = 16_000  # Hz
ENDLESS = 2**63 - 1  # what libsndfile calls a length that the header leaves open
WRITTEN = {".wav": "WAV", ".flac": "FLAC"}  # what save_wav writes, and what libsndfile calls it
BLOCK = 1 << 20  # samples of each channel that are decoded at once


@dataclass(frozen=True)
class FrameGrid:
    """Where an encoder's frames lie: one every `hop` samples, each seeing `receptive_field` samples."""

    hop: int
    receptive_field: int

    @classmethod
    def of(cls, convolutions: Iterable[tuple[int, int]]) -> FrameGrid:
        """The grid of a stack of convolutions without padding, each (kernel, stride)."""
        hop = field = 1
        for kernel, stride in convolutions:
            field += (kernel - 1) * hop
            hop *= stride
        return cls(hop, field)

    @property
    def rate(self) -> float:
        """Frames a second."""
        return SAMPLE_RATE / self.hop

    def num_frames(self, num_samples: int) -> int:
        """Frames of a wav of `num_samples`."""
        return max(0, (num_samples - self.receptive_field) // self.hop + 1)


HUBERT_GRID = FrameGrid.of([(10, 5), *4 * [(3, 2)], *2 * [(2, 2)]])
HOP = HUBERT_GRID.hop  # 320 samples between unit frames: 20 ms
RECEPTIVE_FIELD = HUBERT_GRID.receptive_field  # 400 samples seen by one frame: 25 ms
FRAME_RATE = HUBERT_GRID.rate  # 50 frames a second


class AudioError(ValueError):
    """A file that is not usable audio; the message says which file and why."""


def num_frames(num_samples: int) -> int:
    """Frames of a wav of `num_samples`: N = (T - 400) // 320 + 1, as fairseq and transformers count them."""
    return HUBERT_GRID.num_frames(num_samples)


def load_wav(
    path: str | Path, start: float = 0.0, duration: float | None = None, grid: FrameGrid = HUBERT_GRID
) -> np.ndarray:
    """Read any audio file, or a stretch of it, as a wav.

    Channels are averaged; other rates are resampled by soxr (high quality).

    Args:
        path: anything libsndfile reads (wav, flac, ogg, opus, mp3).
        start: seconds to skip.
        duration: seconds to read; None reads to the end.
        grid: of the encoder that is to hear it.

    Returns: float32 (T,), of at least one frame: T >= 400 for HuBERT.

    Raises:
        FileNotFoundError: there is no such file.
        AudioError: not audio, not finite, or shorter than one frame (25 ms for HuBERT).
    """
    import soundfile

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no audio file at {path}")
    if path.is_dir():
        raise AudioError(f"{path} is a folder, not an audio file; give one file, or use units-extract for a folder")
    try:
        # as bytes: a file's name need not be UTF-8
        with soundfile.SoundFile(str(path) if os.name == "nt" else os.fsencode(path)) as file:
            rate = file.samplerate
            if file.frames >= ENDLESS:
                raise ValueError("it does not say how long it is, as if written into a pipe; write it as a file")
            file.seek(min(round(start * rate), file.frames))
            wav = _mono(file, None if duration is None else round(duration * rate))
    except (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError, MemoryError) as error:
        raise AudioError(f"{path} cannot be read as audio ({error}); wav, flac, ogg, opus and mp3 are") from error
    return check_wav(resample(wav, rate), path, grid)


def _mono(file: SoundFile, frames: int | None) -> np.ndarray:
    """The next so many samples of an open file, or all, channels averaged: float32 (T',).

    In blocks, so that what a damaged header claims is not what is allocated, and a long file's channels are never in memory
    at once.
    """
    blocks = [np.empty(0, np.float32)]
    left = sys.maxsize if frames is None else frames
    while left > 0:
        block = file.read(min(BLOCK, left), dtype="float32", always_2d=True)
        blocks.append(block[:, 0] if file.channels == 1 else block.mean(axis=1))
        if len(block) < min(BLOCK, left):
            break
        left -= len(block)
    return np.concatenate(blocks)


def check_wav(wav: np.ndarray, source: str | Path = "the wav", grid: FrameGrid = HUBERT_GRID) -> np.ndarray:
    """Return `wav` as float32 if it is a finite float (T,) of at least one frame, else raise AudioError naming `source`."""
    if wav.dtype.kind != "f":
        raise AudioError(f"{source} holds {wav.dtype} samples; a wav is float32 in [-1, 1]")
    if wav.ndim != 1:
        raise AudioError(f"{source} has shape {wav.shape}; a wav is mono, (T,)")
    if len(wav) < grid.receptive_field:
        raise AudioError(
            f"{source} is {len(wav) / SAMPLE_RATE:.3f} s long; at least {grid.receptive_field / SAMPLE_RATE:.3f} s are needed"
        )
    if not np.isfinite(wav).all():
        raise AudioError(f"{source} holds NaN or infinite samples")
    return wav.astype(np.float32, copy=False)


def resample(wav: np.ndarray, rate: float) -> np.ndarray:
    """Bring float (T',) at `rate` Hz to 16 kHz float32."""
    if rate != SAMPLE_RATE:
        import soxr

        wav = soxr.resample(wav, rate, SAMPLE_RATE)
    return np.ascontiguousarray(wav, dtype=np.float32)


def save_wav(path: str | Path, wav: np.ndarray) -> Path:
    """Write a wav as 16-bit PCM, 16 kHz, to a .wav or .flac; the file appears whole or not at all. Samples beyond [-1, 1] are
    clipped.

    Raises: AudioError for another suffix; OSError where it cannot be written, as on a full disk.
    """
    import soundfile

    path = Path(path)
    if path.suffix.lower() not in WRITTEN:
        raise AudioError(f"{path} cannot be written: sound goes into {' or '.join(WRITTEN)}, by the file's name")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        kind = WRITTEN[path.suffix.lower()]
        soundfile.write(str(part), np.clip(wav, -1.0, 1.0), SAMPLE_RATE, subtype="PCM_16", format=kind)
        part.replace(path)
    except soundfile.LibsndfileError as error:
        raise OSError(f"{path} cannot be written ({error}); is there room, and may you write there?") from error
    finally:
        part.unlink(missing_ok=True)
    return path
