"""Voices: text -> wav, from engines that run on this machine.

    voice = open_voice("flite:slt")          # recorded speaker, diphone quality and up: slt, awb, rms, kal16
    voice = open_voice("espeak:en-us+f2")    # formant synthesis, dozens of variants, a thousand times real time
    voice = open_voice("transformers:facebook/mms-tts-eng")     # any text-to-speech model of transformers
    wav = voice.speak("the small red dog jumps")

flite is the system library libflite1 (apt, dnf and brew carry it); espeak-ng arrives with pip, in `espeakng-loader`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing
import os
import sys
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from units.audio import check_wav, resample
from units.corpus.manifest import is_plain_text

FLITE_VOICES = ("slt", "awb", "rms", "kal16")


class VoiceError(RuntimeError):
    """An engine that is missing or failed; the message says what to install or what it was asked."""


class Voice(Protocol):
    """Anything that speaks: `name` identifies it in manifests, `speak` returns a wav (T,) at 16 kHz."""

    @property
    def name(self) -> str: ...

    def speak(self, text: str) -> np.ndarray: ...


def open_voice(name: str, **options: float) -> Voice:
    """Open `engine:voice`; `options` are the engine's own (see FliteVoice, EspeakVoice).

    Raises: VoiceError if the engine is unknown or not installed.
    """
    engine, _, variant = name.partition(":")
    if engine == "flite":
        return FliteVoice(variant, **options)
    if engine == "espeak":
        return EspeakVoice(variant, **options)
    if engine == "transformers":
        folder, _, speaker = variant.partition("#")
        return TransformersVoice(folder, int(speaker) if speaker else None)
    raise VoiceError(
        f"unknown engine in voice {name!r}; known: flite:{{{','.join(FLITE_VOICES)}}}, espeak:LANGUAGE[+VARIANT], "
        "transformers:FOLDER_OR_HUB_ID[#SPEAKER]"
    )


def processes(voices: Iterable[str]) -> int:
    """How many processes speak best: one for each core, but a GPU holds a model once."""
    if any(voice.startswith("transformers:") for voice in voices):
        import torch

        if torch.cuda.is_available():
            return 1
    return os.cpu_count() or 1


def _plain(text: str) -> bytes:
    """As an engine in C reads it. Raises VoiceError for a text that it would cut at a NUL, or that is half a character."""
    if not is_plain_text(text):
        raise VoiceError(f"cannot say {text!r}: it holds a NUL or half a character")
    return text.encode()


@dataclass(frozen=True)
class FliteVoice:
    """A voice of CMU Flite (Black and Lenzo 2001).

    stretch: longer than 1 speaks slower. warp: above 1 shortens the vocal tract (higher voice), by playing faster.
    """

    variant: str
    stretch: float = 1.0
    warp: float = 1.0

    @property
    def name(self) -> str:
        return f"flite:{self.variant}"

    def speak(self, text: str) -> np.ndarray:
        library, voice = _flite(self.variant)
        library.feat_set_float(voice.contents.features, b"duration_stretch", self.stretch * self.warp)
        data = _plain(text)
        library.srand(zlib.crc32(data))  # of the C library: its noise, else another one each time
        wave = library.flite_text_to_wave(data, voice)
        try:
            samples = np.ctypeslib.as_array(wave.contents.samples, (wave.contents.num_samples,)) / np.float32(32768)
            rate = wave.contents.sample_rate
        finally:
            library.delete_wave(wave)
        return check_wav(resample(samples, rate * self.warp), f"{self.name} saying {text!r}")


@dataclass(frozen=True)
class EspeakVoice:
    """A voice of espeak-ng. speed: words a minute; pitch: 0 to 99; warp: as in FliteVoice."""

    variant: str
    speed: float = 165
    pitch: float = 50
    warp: float = 1.0

    @property
    def name(self) -> str:
        return f"espeak:{self.variant}"

    def speak(self, text: str) -> np.ndarray:
        library, rate, pieces = _espeak()
        if library.espeak_SetVoiceByName(self.variant.encode()) != 0:
            raise VoiceError(f"espeak-ng has no voice {self.variant!r}; try 'en-us', or a variant such as 'en-us+f2'")
        library.espeak_SetParameter(_ESPEAK_RATE, round(self.speed / self.warp), 0)
        library.espeak_SetParameter(_ESPEAK_PITCH, round(self.pitch), 0)
        pieces.clear()
        data = _plain(text)
        library.espeak_Synth(data, len(data) + 1, 0, 0, 0, _ESPEAK_UTF8, None, None)
        library.espeak_Synchronize()
        if not pieces:
            raise VoiceError(f"{self.name} said nothing for {text!r}")
        samples = np.concatenate(pieces) / np.float32(32768)
        return check_wav(resample(samples, rate * self.warp), f"{self.name} saying {text!r}")


@dataclass(frozen=True)
class TransformersVoice:
    """A text-to-speech model of transformers, such as VITS; `folder` is a folder or a hub id.

    speaker: number of one of a model's several speakers. The same text is always said in the same way.
    """

    folder: str
    speaker: int | None = None

    @property
    def name(self) -> str:
        return f"transformers:{self.folder}" + ("" if self.speaker is None else f"#{self.speaker}")

    def speak(self, text: str) -> np.ndarray:
        from transformers import set_seed

        pipeline = _text_to_speech(self.folder)
        options = {} if self.speaker is None else {"forward_params": {"speaker_id": self.speaker}}
        set_seed(zlib.crc32(_plain(text)))
        try:
            said = pipeline(text, **options)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise VoiceError(f"{self.name} could not say {text!r}: {error}") from error
        said = said[0] if isinstance(said, list) else said
        samples = np.asarray(said["audio"], np.float32).reshape(-1)
        return check_wav(resample(samples, said["sampling_rate"]), f"{self.name} saying {text!r}")


@functools.lru_cache(maxsize=2)
def _text_to_speech(folder: str):
    import torch
    from transformers import pipeline

    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # one of many: a core of its own serves it best
    try:
        return pipeline("text-to-audio", model=folder, device="cuda" if torch.cuda.is_available() else "cpu")
    except (OSError, ValueError, ImportError) as error:
        raise VoiceError(f"no text-to-speech model of transformers in {folder!r}: {error}") from error


# --- flite, through its C interface (flite.h, cst_wave.h, cst_voice.h of version 2.2)


class _Wave(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_char_p),
        ("sample_rate", ctypes.c_int),
        ("num_samples", ctypes.c_int),
        ("num_channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    ]


class _FliteVoice(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("features", ctypes.c_void_p)]


def _load_library(name: str) -> ctypes.CDLL:
    """From FLITE_LIB (a folder) if set, from where `make install` unpacks it, or from the system."""
    unpacked = sorted(Path(sys.prefix).glob("flite/usr/lib/*"))  # .venv/flite, for users who may install no packages
    folders = [Path(os.environ["FLITE_LIB"])] if "FLITE_LIB" in os.environ else unpacked
    for candidate in [str(folder / name) for folder in folders] + [name]:
        with contextlib.suppress(OSError):  # flite wants it, and would not look beside itself
            ctypes.CDLL(str(Path(candidate).with_name("libasound.so.2")), mode=ctypes.RTLD_GLOBAL)
        try:
            return ctypes.CDLL(candidate, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
    raise VoiceError(
        f"the speech engine flite ({name}) is not installed. Install it with: apt-get install libflite1 "
        "(Debian, Ubuntu), dnf install flite (Fedora), brew install flite (macOS); or set FLITE_LIB to the folder "
        "that holds it; or choose espeak voices, which come with pip."
    )


@functools.cache
def _flite(variant: str):
    if variant not in FLITE_VOICES:
        raise VoiceError(f"flite has no voice {variant!r}; it has {', '.join(FLITE_VOICES)}")
    library = _load_library("libflite.so.1")
    for dependency in ("libflite_usenglish.so.1", "libflite_cmulex.so.1"):
        _load_library(dependency)
    library.flite_init()
    library.flite_text_to_wave.argtypes = [ctypes.c_char_p, ctypes.POINTER(_FliteVoice)]
    library.flite_text_to_wave.restype = ctypes.POINTER(_Wave)
    library.delete_wave.argtypes = [ctypes.POINTER(_Wave)]
    library.feat_set_float.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_float]
    register = getattr(_load_library(f"libflite_cmu_us_{variant}.so.1"), f"register_cmu_us_{variant}")
    register.argtypes, register.restype = [ctypes.c_char_p], ctypes.POINTER(_FliteVoice)
    return library, register(None)


# --- espeak-ng, through speak_lib.h

_ESPEAK_SYNCHRONOUS, _ESPEAK_UTF8, _ESPEAK_RATE, _ESPEAK_PITCH = 2, 1, 1, 3
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@functools.cache
def _espeak():
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    pieces: list[np.ndarray] = []

    def collect(samples, count, _events) -> int:
        if samples and count > 0:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    rate = library.espeak_Initialize(_ESPEAK_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
    if rate <= 0:
        raise VoiceError(
            f"espeak-ng did not start (code {rate}); reinstall with: pip install --force-reinstall espeakng-loader"
        )
    callback = _Callback(collect)
    library.espeak_SetSynthCallback(callback)
    library._keep = callback  # the C side holds only the address
    return library, rate, pieces
