"""Reading and writing audio files. A *wav* is float32 (T,), mono, 16 kHz, in [-1, 1].

    wav = load_wav("question.flac")
    save_wav("answer.wav", wav)

Whatever cannot be used raises AudioError, with an AudioReason as its code.
"""

from __future__ import annotations

import io
import math
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from units.containers import IncompleteFile, Part, last_flac_frame, reads_to_the_end, sound_parts, without_count
from units.runtime.files.atomic import path_written_whole
from units.runtime.refusals import Reason, RefusedError

if TYPE_CHECKING:
    from soundfile import SoundFile

SAMPLE_RATE = 16_000  # Hz
UNKNOWN_LENGTH = 2**63 - 1  # samples: libsndfile's value where the header leaves the length open
WRITTEN_FORMATS = {".wav": "WAV", ".flac": "FLAC"}  # suffixes that save_wav writes, with libsndfile's names
BLOCK = 1 << 20  # samples of each channel that are decoded at once
INEXACT = 4 * 1152  # samples by which the count of an mp3 may be off: its encoder's delay and padding
STRETCH = 1 << 10  # samples, 64 ms at 16 kHz, in which channels may cancel each other
FEW = 512  # samples that are read at once where they are only counted
CANCELLED = 0.1  # energy of the channels' average, where channels that have nothing in common give 1
SILENT = 1e-4  # a wav whose loudness is below this, 3 steps of 16 bits, is silent
NO_SPEECH = 1e-3  # a question whose peak is below this, 33 steps of 16 bits, is the noise of a microphone


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


LEAST_RATE, MOST_RATE = 2000, 768_000  # Hz; another rate is a damaged header, and resampling it could take all memory
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
    INCOMPLETE = "incomplete"
    """the file was cut, or holds more sound than can be read"""
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

    Channels are averaged; where they cancel each other, the loudest one is read. Other sample rates are resampled by
    soxr (high quality). The whole file is read, also where its header states less (see units/containers.py).

    Args:
        path: any format that libsndfile reads (wav, flac, ogg, opus, mp3).
        start: seconds to skip.
        duration: seconds to read; None reads to the end, and a longer segment than the file ends with the file.
        grid: the frames of the encoder that will read the wav.

    Returns: float32 (T,), of at least one frame: T >= 400 for HuBERT.

    Raises:
        AudioNotFoundError: there is no such file (also a FileNotFoundError).
        AudioError: not audio, not finite, shorter than one frame (25 ms for HuBERT), a segment outside the file, or a
            file that cannot be read whole.
    """
    import soundfile

    path = Path(path)
    try:
        with _opened(path) as descriptor:
            wav, rate = _decoded(path, descriptor, start, duration)
    except AudioError:
        raise
    except IncompleteFile as error:
        raise AudioError(AudioReason.INCOMPLETE, f"{path} cannot be read whole: {error}") from error
    except (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError, MemoryError, OSError) as error:
        problem = getattr(error, "error_string", error)  # without the descriptor's number
        raise AudioError(
            AudioReason.UNREADABLE, f"{path} cannot be read as audio ({problem}); wav, flac, ogg, opus and mp3 can"
        ) from error
    return check_wav(resample(wav, rate), path, grid)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """The descriptor of a file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a NUL in the name
        raise AudioNotFoundError(AudioReason.NOT_FOUND, f"no audio file at {path}") from error
    try:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise AudioError(
                AudioReason.FOLDER,
                f"{path} is a folder, not an audio file; give one file, or use units-extract for a folder",
            )
        yield descriptor
    finally:
        os.close(descriptor)


def _decoded(path: Path, descriptor: int, start: float, duration: float | None) -> tuple[np.ndarray, int]:
    """A segment of a file as mono float32 (T',), and its sample rate."""
    import soundfile

    shared = os.name != "nt"  # the decoder reads by the same descriptor
    with soundfile.SoundFile(descriptor if shared else str(path), closefd=False) as file:
        rate, frames = file.samplerate, file.frames
        if not LEAST_RATE <= rate <= MOST_RATE:
            raise IncompleteFile(f"its header states {rate} Hz; speech has {LEAST_RATE} to {MOST_RATE} Hz")
        first, count = round(start * rate), None if duration is None else round(duration * rate)
        within = count is not None and first + count <= frames  # the rest of the file does not matter
        flac = shared and file.format == "FLAC" and first < frames < UNKNOWN_LENGTH
        parts = () if within or flac else sound_parts(descriptor, file.format, frames)
        if not parts:
            _check_start(path, first, frames, rate)
            wav = _mono(file, first, count)
            if within or not flac or (reads_to_the_end(descriptor) and last_flac_frame(descriptor) in (None, frames)):
                return wav, rate
            parts = sound_parts(descriptor, "FLAC", frames)
            if not parts:
                _check_count(path, frames)
                return wav, rate
    wav = _joined(path, parts, rate)
    _check_start(path, first, len(wav), rate)
    return wav[first : None if count is None else first + count], rate


def _check_count(path: Path, frames: int) -> None:
    """Refuse a file of FLAC that has more samples than its header states."""
    import soundfile

    found = 0
    with soundfile.SoundFile(io.BytesIO(without_count(path.read_bytes()))) as file, suppress(soundfile.LibsndfileError):
        while read := len(file.read(FEW)):  # at the end of the bytes, libsndfile loses what it read of the last block
            found += read
    if found > frames:
        raise IncompleteFile(f"its header announces {frames} samples, and {found} are there")


def _joined(path: Path, parts: tuple[Part, ...], rate: int) -> np.ndarray:
    """The parts of a file that is read in parts, one after the other: float32 (T',)."""
    import soundfile

    wavs, data = [], path.read_bytes()
    for part in parts:
        with soundfile.SoundFile(io.BytesIO(part.of(data))) as file:
            if file.samplerate != rate:
                raise IncompleteFile(
                    f"it is several files joined, of {rate} and of {file.samplerate} Hz; give them one by one"
                )
            _check_start(path, 0, file.frames, rate)
            wavs.append(_mono(file, 0, None))
    return np.concatenate(wavs)


def _check_start(path: Path, first: int, frames: int, rate: int) -> None:
    """Refuse a segment that begins at or after the end, and a file whose length is unknown."""
    if frames >= UNKNOWN_LENGTH:
        raise AudioError(
            AudioReason.UNKNOWN_LENGTH,
            f"{path} does not state its length, as if it was written into a pipe; write it as a file",
        )
    if first and first >= frames:
        raise AudioError(
            AudioReason.OUTSIDE_FILE,
            f"{path} is {frames / rate:.3f} s long; a segment cannot begin at {first / rate:.3f} s",
        )


def _mono(file: SoundFile, first: int, count: int | None) -> np.ndarray:
    """`count` samples of an open file from `first`, or all that follow: float32 (T',).

    Channels are averaged. Where they cancel each other, as in a stereo file with one side inverted, the loudest channel
    is read instead: everywhere if they do so over all, else in those stretches.
    """
    _go_to(file, first)
    blocks, energies = [np.empty(0, np.float32)], np.zeros(file.channels)
    averaged = total = 0.0
    for block in _blocks(file, count):
        if file.channels == 1:
            blocks.append(block[:, 0])
            continue
        mean = block.mean(axis=1)
        averaged += float(np.dot(mean, mean))
        total += float(np.dot(block.ravel(), block.ravel()))
        blocks.append(_filled(mean, block))
    wav = np.concatenate(blocks)
    announced = file.frames - first if count is None else min(count, file.frames - first)
    if announced - len(wav) > INEXACT:
        raise IncompleteFile(f"{announced} samples are announced, and {len(wav)} can be read")
    if averaged * file.channels**2 >= CANCELLED * total or not total < math.inf:
        return wav
    if not file.seekable():
        raise IncompleteFile("its channels cancel each other, and its format cannot be read twice to choose one")
    blocks.clear()
    _go_to(file, first)
    for block in _blocks(file, count):
        energies += np.square(block).sum(axis=0)
    _go_to(file, first)
    loudest = int(energies.argmax())
    return np.concatenate([block[:, loudest] for block in _blocks(file, count)])


def _filled(mean: np.ndarray, block: np.ndarray) -> np.ndarray:
    """The average of the channels; in stretches where they cancel each other, the loudest channel of those stretches.

    Args:
        mean: float32 (T',), the average. block: float32 (T', channels).
    """
    starts = np.arange(0, len(mean), STRETCH)
    if not len(starts):
        return mean
    energies = np.add.reduceat(np.square(block, dtype=np.float64), starts)  # (stretches, channels)
    averaged = np.add.reduceat(np.square(mean, dtype=np.float64), starts)
    lost = averaged * block.shape[1] ** 2 < CANCELLED * energies.sum(axis=1)
    if not lost.any():
        return mean
    loudest = int(energies[lost].sum(axis=0).argmax())
    return np.where(np.repeat(lost, STRETCH)[: len(mean)], block[:, loudest], mean)


def _blocks(file: SoundFile, count: int | None) -> Iterator[np.ndarray]:
    """The next `count` samples of an open file, or all that are left: float32 (T', channels), a block at a time.

    The file is read in blocks, so that the length claimed by a damaged header is never allocated, and the channels of a
    long file are never in memory at once.
    """
    left = sys.maxsize if count is None else count
    while left > 0:
        block = file.read(min(BLOCK, left), dtype="float32", always_2d=True)
        yield block
        if len(block) < min(BLOCK, left):
            break
        left -= len(block)


def _go_to(file: SoundFile, first: int) -> None:
    """Go to a sample. GSM 6.10 cannot seek: what comes before is decoded."""
    if file.seekable():
        file.seek(first)
    elif first:
        for _ in _blocks(file, first):
            pass


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


def loudness(wav: np.ndarray) -> float:
    """The largest distance of a sample of wav (T,) from their mean: a constant offset is no sound."""
    return float(np.abs(wav - wav.mean(dtype=np.float64)).max()) if wav.size else 0.0


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
