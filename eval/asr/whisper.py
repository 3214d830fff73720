"""Whisper as evaluation ASR: an open vocabulary, for any speech.

    asr = WhisperASR("runs/real/whisper-tiny.en")
    asr.transcribe(load_wav("answer.wav"))      # "That makes 12."

Greedy, without time stamps, one utterance at a time, so that no transcript depends on another wav. Texts are compared
after Whisper's own normaliser (Radford et al. 2022, arXiv 2212.04356, appendix C), on both sides, since Whisper writes
"12" where a text has "twelve": the English one for English, else the basic one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from units.audio import SAMPLE_RATE, SILENT

WINDOW = 30.0  # seconds that Whisper reads at once
SEARCHED = 5.0  # seconds at the end of a window in which a longer wav is cut at its quietest place
QUIET = round(0.2 * SAMPLE_RATE)  # samples over which loudness is compared
MOST_TOKENS = 224  # of a window; half of Whisper's context, as in openai's own decoder


class ASRNotInstalled(ImportError):
    """The recogniser's package is missing; the message has the command that installs it."""


class WindowedASR(ABC):
    """An open-vocabulary recogniser that reads 30 s at once: what a Whisper of any library shares.

    language: ISO 639-1, or None where the model detects it.
    """

    language: str | None
    _normalise: Callable[[str], str]

    @property
    @abstractmethod
    def name(self) -> str:
        """As EvaluationASR.name."""

    @abstractmethod
    def _window(self, wav: np.ndarray) -> str:
        """The words of a wav (T,) of at most 30 s."""

    def transcribe(self, wav: np.ndarray | None) -> str:
        """The words of a wav (T,) at 16 kHz; "" for None and for silence."""
        if wav is None or not len(wav) or np.abs(wav).max() < SILENT:
            return ""
        return " ".join(filter(None, map(self._window, windows(wav))))

    def transcribe_all(self, wavs: Sequence[np.ndarray | None]) -> list[str]:
        """As transcribe, for many wavs, in order."""
        from units.runtime.progress import progress

        return [self.transcribe(wav) for wav in progress(wavs, desc="transcribing", unit="wavs")]

    def comparable(self, texts: Sequence[str | None]) -> list[str | None]:
        """Texts after Whisper's normaliser."""
        return [None if text is None else self._normalise(text) for text in texts]


class WhisperASR(WindowedASR):
    """A transformers Whisper of any size.

    Args:
        model: a folder, or a hub id.
        language: ISO 639-1; None is English for an English model, and what Whisper detects for others.
        device: where it runs.

    Raises:
        FileNotFoundError: there is no such folder, and the hub gave none.
        ValueError: the model is not a Whisper, or an English one is given another language.
    """

    def __init__(self, model: str | Path, language: str | None = None, device: str = "cpu") -> None:
        import torch
        from transformers import AutoConfig, AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration

        self.folder = str(model)
        try:
            config = AutoConfig.from_pretrained(self.folder)
        except (OSError, ValueError) as error:
            raise FileNotFoundError(
                f"there is no Whisper in {self.folder}, and the hub gave none: give a transformers folder or a hub id "
                f"(make real-models writes one to runs/real/whisper-tiny.en; {type(error).__name__})"
            ) from error
        if config.model_type != "whisper":
            raise ValueError(f"{self.folder} is a {config.model_type}; the evaluation ASR whisper: needs a Whisper")
        dtype = torch.float32 if device == "cpu" else torch.float16
        self._model = WhisperForConditionalGeneration.from_pretrained(self.folder, dtype=dtype).to(device).eval()
        self._features = WhisperFeatureExtractor.from_pretrained(self.folder)
        self._tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.multilingual = bool(self._model.generation_config.is_multilingual)
        self.language = spoken_language(self.folder, self.multilingual, language)
        spelling = getattr(self._tokenizer, "english_spelling_normalizer", None)  # British to American
        self._normalise = normaliser(self.language, spelling)

    @property
    def name(self) -> str:
        """Model, its size of weights in millions, and the language."""
        millions = round(sum(weight.numel() for weight in self._model.parameters()) / 1e6)
        spoken = f", {self.language}" if self.language else ""
        return f"whisper {Path(self.folder).name} ({millions} M{spoken})"

    def _window(self, wav: np.ndarray) -> str:
        import torch

        mel = self._features(wav, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        asked = {"language": self.language, "task": "transcribe"} if self.multilingual else {}
        with torch.inference_mode():
            ids = self._model.generate(
                mel.to(self._model.device, self._model.dtype),
                max_new_tokens=MOST_TOKENS,
                do_sample=False,
                num_beams=1,
                return_timestamps=False,
                **asked,
            )
        return self._tokenizer.decode(ids[0], skip_special_tokens=True).strip()


def spoken_language(model: str, multilingual: bool, language: str | None) -> str | None:
    """The language that a Whisper transcribes; None where it detects it.

    Raises:
        ValueError: an English Whisper is given another language.
    """
    if not multilingual and language not in (None, "en"):
        raise ValueError(f"{model} is an English Whisper; it cannot transcribe {language!r}")
    return language or (None if multilingual else "en")


def normaliser(language: str | None, spelling: Mapping[str, str] | None = None) -> Callable[[str], str]:
    """Whisper's normaliser: the English one for English, else the basic one.

    Args:
        language: ISO 639-1.
        spelling: British spelling -> American one, from the model's normalizer.json.
    """
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    return EnglishTextNormalizer(dict(spelling or {})) if language == "en" else BasicTextNormalizer()


def windows(wav: np.ndarray) -> list[np.ndarray]:
    """A wav (T,) in pieces of at most 30 s, cut where the last seconds of a piece are quietest."""
    most, searched = round(WINDOW * SAMPLE_RATE), round(SEARCHED * SAMPLE_RATE)
    pieces = []
    while len(wav) > most:
        energy = np.convolve(wav[most - searched : most].astype(np.float64) ** 2, np.ones(QUIET), "valid")
        at = most - searched + int(energy.argmin()) + QUIET // 2
        pieces.append(wav[:at])
        wav = wav[at:]
    return [*pieces, wav]
