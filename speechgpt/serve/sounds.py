"""Sound as requests and replies hold it: audio files, and 16-bit samples at 24 kHz, in bytes."""

from __future__ import annotations

import base64
import binascii
import io
import os
import tempfile

import numpy as np

from speechgpt.serve.errors import ApiError

OPENAI_RATE = 24_000  # Hz, of 16-bit samples without a header, in both directions
KINDS = {  # name in OpenAI's API: libsndfile's format and subtype, media type
    "wav": ("WAV", "PCM_16", "audio/wav"),
    "flac": ("FLAC", "PCM_16", "audio/flac"),
    "mp3": ("MP3", "MPEG_LAYER_III", "audio/mpeg"),
    "opus": ("OGG", "OPUS", "audio/ogg"),
}
RAW = ("pcm", "pcm16")
SAMPLE_KIND = "<i2"
LONGEST = 3600.0  # seconds of one sound; it is one file of at most MAX_BODY bytes, which may be packed tightly


def read_sound(data: bytes, what: str = "the request's body") -> np.ndarray:
    """The wav (T,) at 16 kHz of an audio file's bytes.

    Raises:
        ValueError: they are no audio file, or one of more than an hour.
    """
    import soundfile

    from units.audio import AudioError, load_wav

    with tempfile.NamedTemporaryFile(prefix="speechgpt-") as file:
        file.write(data)
        file.flush()
        try:
            seconds = soundfile.info(file.name).duration
        except (RuntimeError, ValueError, OSError):
            seconds = 0.0  # load_wav says what is wrong, or reads it all the same
        if seconds > LONGEST:
            raise ValueError(f"{what} is {seconds:.0f} s of sound; at most {LONGEST:.0f} s are allowed")
        try:
            return load_wav(file.name)
        except AudioError as error:
            message = str(error).replace(repr(os.fsencode(file.name)), "it").replace(file.name, what)
            raise ValueError(message) from error


def decoded(text: object, param: str) -> bytes:
    """The bytes of a base64 text. Raises ApiError."""
    if not isinstance(text, str) or not text:
        raise ApiError(400, f"{param} is not base64 text", param=param)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(400, f"{param} is not base64 ({error}); send it without a data: prefix", param=param) from error


def read_samples(data: bytes, model_rate: int) -> np.ndarray:
    """16-bit samples at 24 kHz as a wav (T,) at the model's rate. An odd last byte is dropped."""
    samples = np.frombuffer(data[: len(data) // 2 * 2], SAMPLE_KIND).astype(np.float32) / 32768
    return resampled(samples, OPENAI_RATE, model_rate)


def resampled(wav: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """A wav (T,) at another rate."""
    if rate == wanted or not len(wav):
        return wav
    import soxr

    return soxr.resample(wav, rate, wanted).astype(np.float32)


def samples(wav: np.ndarray) -> bytes:
    """A wav (T,) as 16-bit little-endian samples."""
    return (wav.clip(-1.0, 1.0) * 32767).astype(SAMPLE_KIND).tobytes()


class SampleStream:
    """A wav that comes in pieces, as 16-bit samples at 24 kHz; the joined pieces equal those of the whole."""

    def __init__(self, rate: int) -> None:
        """rate: of the wavs, in Hz."""
        import soxr

        same = rate == OPENAI_RATE
        self._resampler = None if same else soxr.ResampleStream(rate, OPENAI_RATE, 1, dtype="float32")

    def push(self, wav: np.ndarray, last: bool = False) -> bytes:
        """The samples that are ready after a piece (T,); T may be 0."""
        if self._resampler is None:
            return samples(wav)
        return samples(self._resampler.resample_chunk(wav.astype(np.float32), last=last).reshape(-1))


def check_kind(kind: object, param: str, allowed: tuple[str, ...] = (*KINDS, *RAW)) -> str:
    """The name of a format. Raises ApiError for one that is not allowed, or that this libsndfile does not write."""
    if kind not in allowed:
        raise ApiError(400, f"{param} is {kind!r}; allowed: {', '.join(allowed)}", param=param)
    assert isinstance(kind, str)
    if kind in KINDS:
        import soundfile

        if not soundfile.check_format(*KINDS[kind][:2]):
            raise ApiError(400, f"{param} is {kind!r}, which this server cannot write; ask for wav", param=param)
    return kind


def written(wav: np.ndarray, rate: int, kind: str) -> tuple[bytes, str]:
    """The bytes of a wav (T,) in a format, and their media type."""
    if kind in RAW:
        return samples(resampled(wav, rate, OPENAI_RATE)), "audio/pcm"
    import soundfile

    form, subtype, media = KINDS[kind]
    file = io.BytesIO()
    soundfile.write(file, wav.clip(-1.0, 1.0), rate, subtype=subtype, format=form)
    return file.getvalue(), media
