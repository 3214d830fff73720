"""What a TTS voice is: something with a name that turns a text into a wav."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from instruct_data.text.reasons import TextReason
from units.corpus.manifest import is_plain_text
from units.runtime.refusals import RefusedError

if TYPE_CHECKING:
    import numpy as np


class VoiceError(RefusedError):
    """A voice that is unknown, whose engine is missing, or that failed to speak a text."""


class TTSVoice(Protocol):
    """A text-to-speech voice."""

    @property
    def name(self) -> str:
        """Its specification, such as `flite:slt`; manifests state it as the speaker."""
        ...

    def speak(self, text: str) -> np.ndarray:
        """A wav of the text: float32 (T,), 16 kHz.

        Raises:
            VoiceError: if the engine is missing or fails.
        """
        ...


def plain_bytes(text: str) -> bytes:
    """A text in UTF-8, as an engine in C reads it.

    Raises:
        VoiceError: if the text holds a NUL, where the engine would stop reading, or half of a surrogate pair.
    """
    if not is_plain_text(text):
        message = f"cannot speak {text!r}: it holds a NUL or half of a surrogate pair"
        raise VoiceError(TextReason.NOT_PLAIN_TEXT, message)
    return text.encode()
