"""Whisper by faster-whisper (CTranslate2) as evaluation ASR: the same greedy transcripts from another library.

    ct2-transformers-converter --model runs/real/whisper-tiny.en --output_dir runs/real/whisper-tiny.en-ct2 \\
        --copy_files tokenizer.json preprocessor_config.json
    eval-run ... --asr faster-whisper:runs/real/whisper-tiny.en-ct2      # or a name that the package knows: small.en

Needs `pip install '.[faster-whisper]'`. Windows, greedy decoding and normaliser are those of eval/asr/whisper.py. Its
fallbacks are off: it neither samples again, nor leaves out a window that it takes for silence. A window is filled to
30 s with silence, as transformers does; faster-whisper alone fills its mel with zeros, which stand for sound.
It computes with weights as they are stored (`--quantization int8` of the converter); on a CPU float16 becomes float32.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from eval.asr.whisper import MOST_TOKENS, WINDOW, ASRNotInstalled, WindowedASR, normaliser, spoken_language
from units.audio import SAMPLE_RATE

WEIGHTS = "model.bin"
NEEDED = (WEIGHTS, "config.json", "tokenizer.json")
CONVERT = "ct2-transformers-converter --model {} --output_dir OUT --copy_files tokenizer.json preprocessor_config.json"


class FasterWhisperASR(WindowedASR):
    """A Whisper in CTranslate2's format.

    Args:
        model: a converted folder, or a name that faster-whisper knows and downloads, such as small.en.
        language: ISO 639-1; None is English for an English model, and what Whisper detects for others.
        device: where it runs.

    Raises:
        ASRNotInstalled: faster-whisper is not installed.
        FileNotFoundError: there is no such folder and no such name, or the folder is not converted.
        ValueError: the folder holds another model, or an English one is given another language.
    """

    def __init__(self, model: str | Path, language: str | None = None, device: str = "cpu") -> None:
        self.model = str(model)
        folder = Path(model)
        if folder.is_dir():
            _check(folder)
        kind, _, number = device.partition(":")
        self._whisper = _open(self.model, kind, int(number or 0))
        self.language = spoken_language(self.model, self._whisper.model.is_multilingual, language)
        self._normalise = normaliser(self.language, _spelling(folder))

    @property
    def name(self) -> str:
        """Model, precision, and the language."""
        spoken = f", {self.language}" if self.language else ""
        return f"faster-whisper {Path(self.model).name} ({self._whisper.model.compute_type}{spoken})"

    def _window(self, wav: np.ndarray) -> str:
        filled = np.zeros(round(WINDOW * SAMPLE_RATE), np.float32)
        filled[: len(wav)] = wav
        segments, _ = self._whisper.transcribe(
            filled,
            language=self.language,
            beam_size=1,
            temperature=0.0,
            max_new_tokens=MOST_TOKENS,
            compression_ratio_threshold=None,
            log_prob_threshold=None,
            no_speech_threshold=None,
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return " ".join(segment.text.strip() for segment in segments).strip()


def _open(model: str, device: str, number: int) -> Any:
    import torch

    try:
        import ctranslate2
        from faster_whisper import WhisperModel
    except ImportError as error:
        raise ASRNotInstalled(
            "the evaluation ASR faster-whisper: needs the package faster-whisper: pip install '.[faster-whisper]'"
        ) from error
    ctranslate2.set_log_level(logging.ERROR)  # a warning that float16 becomes float32; the name has the precision
    threads = torch.get_num_threads() if device == "cpu" else 0
    try:
        return WhisperModel(model, device, device_index=number, compute_type="default", cpu_threads=threads)
    except (OSError, ValueError, RuntimeError) as error:  # as ctranslate2, faster-whisper and the hub raise them
        if Path(model).is_dir():
            raise ValueError(f"{model} does not open as a Whisper of CTranslate2: {error}") from error
        raise FileNotFoundError(
            f"there is no folder {model}, and faster-whisper found no model of this name ({type(error).__name__}); "
            f"give a converted folder ({CONVERT.format('FOLDER')}), or a name such as small.en"
        ) from error


def _check(folder: Path) -> None:
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} has no {' and no '.join(missing)}; faster-whisper: needs a Whisper in CTranslate2's format: "
            f"{CONVERT.format(folder)}. A transformers folder as it is: --asr whisper:{folder}"
        )


def _spelling(folder: Path) -> dict[str, str]:
    from units.runtime.files.json_files import read_json

    path = folder / "normalizer.json"
    return read_json(path) if path.is_file() else {}
