"""TTS voices of espeak-ng, through its C interface (speak_lib.h); the library comes with the extra `data`."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from instruct_data.speech.tts_voice import VoiceError, plain_bytes
from instruct_data.text.reasons import TextReason
from units.audio import check_wav, resample
from units.runtime.command import check_range
from units.runtime.extras import required
from units.runtime.settings import check_types

# speak_lib.h: AUDIO_OUTPUT_SYNCHRONOUS, espeakCHARS_UTF8, espeakRATE, espeakPITCH
_SYNCHRONOUS, _UTF8, _RATE, _PITCH = 2, 1, 1, 3
_IPA = 2  # phonememode of espeak_TextToPhonemes
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class EspeakVoice:
    """A voice of espeak-ng.

    voice: a language with an optional variant, such as `en-us+f2`.
    speed: words per minute.
    pitch: 0 to 99.
    warp: above 1 shortens the vocal tract, which raises the voice: slower speech, played faster.
    """

    voice: str
    speed: float = 165
    pitch: float = 50
    warp: float = 1.0

    def __post_init__(self) -> None:
        check_types(self)
        check_range("speed", self.speed, 80, 450)  # the range of espeak-ng
        check_range("pitch", self.pitch, 0, 99)
        check_range("warp", self.warp, 0.5, 2)

    @property
    def name(self) -> str:
        return f"espeak:{self.voice}"

    def speak(self, text: str) -> np.ndarray:
        """See TTSVoice."""
        library, rate, chunks = _open()
        _set_voice(library, self.voice)
        library.espeak_SetParameter(_RATE, round(self.speed / self.warp), 0)
        library.espeak_SetParameter(_PITCH, round(self.pitch), 0)
        chunks.clear()
        data = plain_bytes(text)
        library.espeak_Synth(data, len(data) + 1, 0, 0, 0, _UTF8, None, None)
        library.espeak_Synchronize()
        if not chunks:
            raise VoiceError(TextReason.SILENT, f"{self.name} gave no audio for {text!r}")
        samples = np.concatenate(chunks) / np.float32(32768)
        return check_wav(resample(samples, rate * self.warp), f"{self.name} speaking {text!r}")


def phonemes(text: str, voice: str) -> str:
    """The phonemes of a text in the International Phonetic Alphabet, without pauses.

    Raises: VoiceError if espeak-ng has no such voice.
    """
    library, _, _ = _open()
    _set_voice(library, voice)
    position = ctypes.c_char_p(plain_bytes(text))
    found = []
    while position.value:  # a clause at a time; the library moves the position, to nothing at the end
        found.append(library.espeak_TextToPhonemes(ctypes.byref(position), _UTF8, _IPA).decode())
    return " ".join(filter(None, (clause.strip() for clause in found)))


def _set_voice(library: Any, voice: str) -> None:
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        message = f"espeak-ng has no voice {voice!r}; try 'en-us', or a variant such as 'en-us+f2'"
        raise VoiceError(TextReason.UNKNOWN_VOICE, message)


@functools.cache
def _open() -> tuple[Any, int, list[np.ndarray]]:
    """The library, its sample rate, and the list that receives the chunks of audio."""
    loader = required("espeakng_loader")
    library: Any = ctypes.CDLL(loader.get_library_path())
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    chunks: list[np.ndarray] = []

    def collect(samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, loader.get_data_path().encode(), 0)
    if rate <= 0:
        raise VoiceError(
            TextReason.ENGINE_MISSING,
            f"espeak-ng did not start (code {rate}); reinstall it with: pip install --force-reinstall espeakng-loader",
        )
    callback = _Callback(collect)
    library.espeak_SetSynthCallback(callback)
    library._callback = callback  # the C library holds the address alone; without this it would be freed
    return library, rate, chunks
