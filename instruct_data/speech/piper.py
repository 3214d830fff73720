"""TTS voices of Piper: VITS models as ONNX files that read the phonemes of espeak-ng."""

from __future__ import annotations

import functools
import multiprocessing
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instruct_data.speech.espeak import phonemes
from instruct_data.speech.tts_voice import VoiceError
from instruct_data.text.reasons import TextReason
from units.audio import check_wav, resample
from units.runtime.command import check_range
from units.runtime.extras import required
from units.runtime.files.json_files import checked, read_json
from units.runtime.settings import check_types

_PAD, _START, _END = "_", "^", "$"  # of piper's phoneme_id_map
_CLAUSE = re.compile(r"[^.,;:!?]+[.,;:!?]*")


@dataclass(frozen=True)
class PiperVoice:
    """A voice of Piper.

    folder: holds one NAME.onnx and its NAME.onnx.json.
    speaker: number of a speaker, for a model with several.
    stretch: above 1 speaks slower.
    noise: variation of the sound, and noise_w of the durations, as piper's noise_scale and noise_w. With 0 the same
        text always gives the same wav; above 0 it depends on what was spoken before.
    """

    folder: str
    speaker: int | None = None
    stretch: float = 1.0
    noise: float = 0.0
    noise_w: float = 0.0

    def __post_init__(self) -> None:
        check_types(self)
        check_range("speaker", self.speaker, 0)
        check_range("stretch", self.stretch, 0.1, 10)
        check_range("noise", self.noise, 0, 2)
        check_range("noise_w", self.noise_w, 0, 2)

    @property
    def name(self) -> str:
        return f"piper:{self.folder}" + ("" if self.speaker is None else f"#{self.speaker}")

    def speak(self, text: str) -> np.ndarray:
        """See TTSVoice."""
        session, facts = _open(self.folder)
        ids = _ids(text, facts)
        inputs: dict[str, np.ndarray] = {
            "input": np.array([ids], np.int64),
            "input_lengths": np.array([len(ids)], np.int64),
            "scales": np.array([self.noise, self.stretch, self.noise_w], np.float32),
        }
        if facts["num_speakers"] > 1:
            inputs["sid"] = np.array([self._speaker(facts["num_speakers"])], np.int64)
        try:
            samples = session.run(None, inputs)[0].reshape(-1)
        except Exception as error:  # onnxruntime has no class of its own for a model that does not fit
            raise VoiceError(TextReason.ENGINE_FAILED, f"{self.name} failed to speak {text!r}: {error}") from error
        return check_wav(resample(samples, facts["audio"]["sample_rate"]), f"{self.name} speaking {text!r}")

    def _speaker(self, count: int) -> int:
        speaker = self.speaker or 0
        if speaker >= count:
            message = f"{self.name}: the voice has speakers 0 to {count - 1}"
            raise VoiceError(TextReason.UNKNOWN_VOICE, message)
        return speaker


def _ids(text: str, facts: dict[str, Any]) -> list[int]:
    """Ids of a text's phonemes: marks of the end of a clause stay, and a pad stands after each phoneme."""
    known = facts["phoneme_id_map"]
    spoken = ""
    for clause in _CLAUSE.findall(text):
        words = clause.rstrip(".,;:!? ")
        spoken += phonemes(words, facts["espeak"]["voice"]) + clause[len(words) :].rstrip() + " "
    ids = [*known[_START], *known[_PAD]]
    for phoneme in unicodedata.normalize("NFD", spoken.strip()):
        if phoneme in known:  # piper leaves out what a voice has not learned, too
            ids += [*known[phoneme], *known[_PAD]]
    return [*ids, *known[_END]]


@functools.lru_cache(maxsize=2)
def _open(folder: str) -> tuple[Any, dict[str, Any]]:
    """The model, and what its json file says.

    Raises: VoiceError if the folder holds no voice; FileError if the json file is damaged.
    """
    models = sorted(Path(folder).glob("*.onnx"))
    if len(models) != 1:
        count = "no .onnx file" if not models else f"{len(models)} .onnx files"
        message = f"{folder} has {count}; a voice of Piper is a folder with one NAME.onnx and its NAME.onnx.json"
        raise VoiceError(TextReason.UNKNOWN_VOICE, message)
    path = models[0].with_name(models[0].name + ".json")
    if not path.exists():
        raise VoiceError(TextReason.UNKNOWN_VOICE, f"{models[0]} needs its {path.name} beside it")
    facts = checked(
        read_json(path), str(path), {"audio": dict, "espeak": dict, "phoneme_id_map": dict, "num_speakers": int}
    )
    checked(facts["audio"], f"{path}, audio", {"sample_rate": int})
    checked(facts["espeak"], f"{path}, espeak", {"voice": str})
    checked(facts["phoneme_id_map"], f"{path}, phoneme_id_map", dict.fromkeys((_PAD, _START, _END), list))
    onnxruntime = required("onnxruntime", "piper")
    options = onnxruntime.SessionOptions()
    if multiprocessing.parent_process() is not None:  # a worker: the others have the other cores
        options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(str(models[0]), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        raise VoiceError(
            TextReason.ENGINE_FAILED, f"{models[0]} is no model that onnxruntime reads: {error}"
        ) from error
    return session, facts
