"""TTS voices that are models of transformers, such as VITS."""

from __future__ import annotations

import functools
import multiprocessing
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from instruct_data.speech.tts_voice import VoiceError, plain_bytes
from instruct_data.text.reasons import TextReason
from units.audio import check_wav, resample
from units.runtime.command import check_range
from units.runtime.settings import check_types


@dataclass(frozen=True)
class TransformersVoice:
    """A text-to-speech model of transformers.

    folder: a folder, or the name of a model on the Hugging Face hub.
    speaker: number of a speaker, for a model with several.
    """

    folder: str
    speaker: int | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_range("speaker", self.speaker, 0)

    @property
    def name(self) -> str:
        return f"transformers:{self.folder}" + ("" if self.speaker is None else f"#{self.speaker}")

    def speak(self, text: str) -> np.ndarray:
        """See TTSVoice. The same text always gives the same wav."""
        from transformers import set_seed

        pipeline = _open(self.folder)
        options = {} if self.speaker is None else {"forward_params": {"speaker_id": self.speaker}}
        set_seed(zlib.crc32(plain_bytes(text)))
        try:
            output = pipeline(text, **options)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise VoiceError(TextReason.ENGINE_FAILED, f"{self.name} failed to speak {text!r}: {error}") from error
        output = output[0] if isinstance(output, list) else output
        samples = np.asarray(output["audio"], np.float32).reshape(-1)
        return check_wav(resample(samples, output["sampling_rate"]), f"{self.name} speaking {text!r}")


@functools.lru_cache(maxsize=2)
def _open(folder: str) -> Any:
    import torch
    from transformers import pipeline

    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # one of several worker processes, each on one core
    try:
        return pipeline("text-to-audio", model=folder, device="cuda" if torch.cuda.is_available() else "cpu")
    except (OSError, ValueError, ImportError) as error:
        message = f"no text-to-speech model of transformers in {folder!r}: {error}"
        raise VoiceError(TextReason.UNKNOWN_VOICE, message) from error
