"""Reading and writing audio files. A *wav* is float32 (T,), mono, 16 kHz, in [-1, 1].

    wav = load_wav("question.flac")
    save_wav("answer.wav", wav)

Whatever cannot be used raises AudioError, with an AudioReason as its code.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from units.runtime.atomic import path_written_whole
from units.runtime.refusals import Reason, RefusedError

if TYPE_CHECKING:
    from soundfile import SoundFile

SAMPLE_RATE = 16_000  # Hz
UNKNOWN_LENGTH = 2**63 - 1  # samples: libsndfile's value where the header leaves the length open
WRITTEN_FORMATS = {".wav": "WAV", ".flac": "FLAC"}  # suffixes that save_wav writes, with libsndfile's names
BLOCK = 1 << 20  # samples of each channel that are decoded at once


@dataclass(frozen=True)
class FrameGrid:
    """The frames of an encoder: one every `hop` samples, each computed from `receptive_field` samples."""

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
        """Frames per second."""
        return SAMPLE_RATE / self.hop

    def num_frames(self, num_samples: int) -> int:
        """Frames of a wav of `num_samples`."""
        return max(0, (num_samples - self.receptive_field) // self.hop + 1)


HUBERT_GRID = FrameGrid.of([(10, 5), *4 * [(3, 2)], *2 * [(2, 2)]])
HOP = HUBERT_GRID.hop  # 320 samples between unit frames: 20 ms
RECEPTIVE_FIELD = HUBERT_GRID.receptive_field  # 400 samples that one frame is computed from: 25 ms
FRAME_RATE = HUBERT_GRID.rate  # 50 frames per second


class AudioReason(Reason):
    """Why audio is refused."""

    NOT_FOUND = "not_found"
    """there is no such file"""
    FOLDER = "folder"
    """a folder stands where an audio file is expected"""
    NO_FILES = "no_audio_files"
    """a folder or a glob holds no audio file"""
    UNREADABLE = "unreadable"
    """the file is not audio, is damaged, or may not be read"""
    UNKNOWN_LENGTH = "unknown_length"
    """the header leaves the length open, as in a file that was written into a pipe"""
    OUTSIDE_FILE = "outside_file"
    """the segment begins at or after the end of the file"""
    TOO_SHORT = "too_short"
    """shorter than one frame of the unit encoder"""
    SILENT = "silent"
    """no sample is loud enough to be speech"""
    NOT_FINITE = "not_finite"
    """samples that are NaN or infinite"""
    NOT_FLOAT = "not_float"
    """an array of another kind than floats"""
    NOT_MONO = "not_mono"
    """an array with more than one axis"""
    UNKNOWN_FORMAT = "unknown_format"
    """a file to write whose suffix is neither .wav nor .flac"""


class AudioError(RefusedError):
    """Audio that cannot be used. `reason` is an AudioReason; the message names the file."""


class AudioNotFoundError(AudioError, FileNotFoundError):
    """There is no such audio file."""


def num_frames(num_samples: int) -> int:
    """Frames of a wav of `num_samples`: N = (T - 400) // 320 + 1, as fairseq and transformers count them."""
    return HUBERT_GRID.num_frames(num_samples)


def load_wav(
    path: str | Path, start: float = 0.0, duration: float | None = None, grid: FrameGrid = HUBERT_GRID
) -> np.ndarray:
    """Read an audio file, or a segment of it, as a wav.

    Channels are averaged. Other sample rates are resampled by soxr (high quality).

    Args:
        path: any format that libsndfile reads (wav, flac, ogg, opus, mp3).
        start: seconds to skip.
        duration: seconds to read; None reads to the end, and a longer segment than the file ends with the file.
        grid: the frames of the encoder that will read the wav.

    Returns: float32 (T,), of at least one frame: T >= 400 for HuBERT.

    Raises:
        AudioNotFoundError: there is no such file (also a FileNotFoundError).
        AudioError: not audio, not finite, shorter than one frame (25 ms for HuBERT), or a segment outside the file.
    """
    import soundfile

    path = Path(path)
    if not path.exists():
        raise AudioNotFoundError(AudioReason.NOT_FOUND, f"no audio file at {path}")
    if path.is_dir():
        raise AudioError(
            AudioReason.FOLDER,
            f"{path} is a folder, not an audio file; give one file, or use units-extract for a folder",
        )
    try:
        # as bytes: a file's name need not be UTF-8
        with soundfile.SoundFile(str(path) if os.name == "nt" else os.fsencode(path)) as file:
            rate = file.samplerate
            _seek(file, path, start)
            wav = _mono(file, None if duration is None else round(duration * rate))
    except AudioError:
        raise
    except (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError, MemoryError) as error:
        raise AudioError(
            AudioReason.UNREADABLE, f"{path} cannot be read as audio ({error}); wav, flac, ogg, opus and mp3 can"
        ) from error
    return check_wav(resample(wav, rate), path, grid)


def _seek(file: SoundFile, path: Path, start: float) -> None:
    """Go to `start` seconds."""
    if file.frames >= UNKNOWN_LENGTH:
        raise AudioError(
            AudioReason.UNKNOWN_LENGTH,
            f"{path} does not state its length, as if it was written into a pipe; write it as a file",
        )
    first = round(start * file.samplerate)
    if first and first >= file.frames:
        raise AudioError(
            AudioReason.OUTSIDE_FILE,
            f"{path} is {file.frames / file.samplerate:.3f} s long; a segment cannot begin at {start:.3f} s",
        )
    file.seek(first)


def _mono(file: SoundFile, frames: int | None) -> np.ndarray:
    """The next `frames` samples of an open file, or all that are left, channels averaged: float32 (T',).

    The file is read in blocks, so that the length claimed by a damaged header is never allocated, and the channels of a
    long file are never in memory at once.
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
    """Return `wav` as float32 if it is a wav of at least one frame.

    Args:
        wav: float (T,).
        source: how error messages name it.
        grid: the frames of the encoder that will read it.

    Raises: AudioError if it is not float, not mono, too short or not finite.
    """
    if wav.dtype.kind != "f":
        raise AudioError(AudioReason.NOT_FLOAT, f"{source} holds {wav.dtype} samples; a wav is float32 in [-1, 1]")
    if wav.ndim != 1:
        raise AudioError(AudioReason.NOT_MONO, f"{source} has shape {wav.shape}; a wav is mono, (T,)")
    if len(wav) < grid.receptive_field:
        seconds, needed = len(wav) / SAMPLE_RATE, grid.receptive_field / SAMPLE_RATE
        raise AudioError(AudioReason.TOO_SHORT, f"{source} is {seconds:.3f} s long; at least {needed:.3f} s are needed")
    if not np.isfinite(wav).all():
        raise AudioError(AudioReason.NOT_FINITE, f"{source} holds NaN or infinite samples")
    return wav.astype(np.float32, copy=False)


def resample(wav: np.ndarray, rate: float) -> np.ndarray:
    """Resample float (T',) at `rate` Hz to 16 kHz float32."""
    if rate != SAMPLE_RATE:
        import soxr

        wav = soxr.resample(wav, rate, SAMPLE_RATE)
    return np.ascontiguousarray(wav, dtype=np.float32)


def save_wav(path: str | Path, wav: np.ndarray) -> Path:
    """Write a wav as 16-bit PCM at 16 kHz. The file appears whole or not at all; samples beyond [-1, 1] are clipped.

    Args:
        path: a .wav or .flac.
        wav: float (T,).

    Raises:
        AudioError: another suffix.
        OSError: the file cannot be written, as on a full disk.
    """
    import soundfile

    path = Path(path)
    if path.suffix.lower() not in WRITTEN_FORMATS:
        raise AudioError(
            AudioReason.UNKNOWN_FORMAT,
            f"{path} cannot be written: the name of an audio file ends in {' or '.join(WRITTEN_FORMATS)}",
        )
    try:
        with path_written_whole(path) as part:
            soundfile.write(
                str(part),
                np.clip(wav, -1.0, 1.0),
                SAMPLE_RATE,
                subtype="PCM_16",
                format=WRITTEN_FORMATS[path.suffix.lower()],
            )
    except soundfile.LibsndfileError as error:
        raise OSError(
            f"{path} cannot be written ({error}); check the free space and the folder's permissions"
        ) from error
    return path
