"""TTS voices of CMU Flite (Black and Lenzo 2001), through its C interface (flite.h, cst_wave.h, cst_voice.h of 2.2)."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instruct_data.speech.tts_voice import VoiceError, plain_bytes
from instruct_data.text.reasons import TextReason
from units.audio import check_wav, resample
from units.runtime.command import check_range
from units.runtime.settings import check_types

VOICES = ("slt", "awb", "rms", "kal16")


@dataclass(frozen=True)
class FliteVoice:
    """A voice of Flite.

    voice: one of VOICES.
    stretch: above 1 speaks slower.
    warp: above 1 shortens the vocal tract, which raises the voice: slower speech, played faster.
    """

    voice: str
    stretch: float = 1.0
    warp: float = 1.0

    def __post_init__(self) -> None:
        check_types(self)
        if self.voice not in VOICES:
            message = f"Flite has no voice {self.voice!r}; it has {', '.join(VOICES)}"
            raise VoiceError(TextReason.UNKNOWN_VOICE, message)
        check_range("stretch", self.stretch, 0.1, 10)
        check_range("warp", self.warp, 0.5, 2)

    @property
    def name(self) -> str:
        return f"flite:{self.voice}"

    def speak(self, text: str) -> np.ndarray:
        """See TTSVoice. The same text always gives the same wav."""
        library, voice = _open(self.voice)
        library.feat_set_float(voice.contents.features, b"duration_stretch", self.stretch * self.warp)
        data = plain_bytes(text)
        library.srand(zlib.crc32(data))  # the C library's random numbers are the noise of the synthesis
        wave = library.flite_text_to_wave(data, voice)
        try:
            samples = np.ctypeslib.as_array(wave.contents.samples, (wave.contents.num_samples,)) / np.float32(32768)
            rate = wave.contents.sample_rate
        finally:
            library.delete_wave(wave)
        return check_wav(resample(samples, rate * self.warp), f"{self.name} speaking {text!r}")


class _Wave(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_char_p),
        ("sample_rate", ctypes.c_int),
        ("num_samples", ctypes.c_int),
        ("num_channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    ]


class _Voice(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("features", ctypes.c_void_p)]


def _load_library(name: str) -> ctypes.CDLL:
    """Load a library from the folder FLITE_LIB if that is set, else from .venv/flite, or from the system.

    `make install` unpacks Flite into .venv/flite for users who may not install system packages.
    """
    unpacked = sorted(Path(sys.prefix).glob("flite/usr/lib/*"))
    folders = [Path(os.environ["FLITE_LIB"])] if "FLITE_LIB" in os.environ else unpacked
    for candidate in [str(folder / name) for folder in folders] + [name]:
        with contextlib.suppress(OSError):  # Flite needs this library, and does not look for it in its own folder
            ctypes.CDLL(str(Path(candidate).with_name("libasound.so.2")), mode=ctypes.RTLD_GLOBAL)
        try:
            return ctypes.CDLL(candidate, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
    raise VoiceError(
        TextReason.ENGINE_MISSING,
        f"the speech engine Flite ({name}) is not installed. Install it with: apt-get install libflite1 "
        "(Debian, Ubuntu), dnf install flite (Fedora), brew install flite (macOS); or set FLITE_LIB to the folder "
        "that holds it; or choose espeak voices, whose engine pip installs",
    )


@functools.cache
def _open(voice: str) -> tuple[ctypes.CDLL, Any]:
    """The library and the pointer to one of its voices."""
    library = _load_library("libflite.so.1")
    for dependency in ("libflite_usenglish.so.1", "libflite_cmulex.so.1"):
        _load_library(dependency)
    library.flite_init()
    library.flite_text_to_wave.argtypes = [ctypes.c_char_p, ctypes.POINTER(_Voice)]
    library.flite_text_to_wave.restype = ctypes.POINTER(_Wave)
    library.delete_wave.argtypes = [ctypes.POINTER(_Wave)]
    library.feat_set_float.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_float]
    register = getattr(_load_library(f"libflite_cmu_us_{voice}.so.1"), f"register_cmu_us_{voice}")
    register.argtypes, register.restype = [ctypes.c_char_p], ctypes.POINTER(_Voice)
    return library, register(None)
