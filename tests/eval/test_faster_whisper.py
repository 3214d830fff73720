"""faster-whisper as evaluation ASR: folders that are refused, and the real one beside transformers' own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from spoken_test_set import ANSWERS, QUESTIONS, Speak

from eval.asr.faster_whisper import NEEDED
from eval.asr.recogniser import EvaluationASR, open_asr
from eval.metrics import word_error_rate

REAL = Path(__file__).parents[2] / "runs" / "real" / "whisper-tiny.en"


def test_a_folder_that_is_not_converted_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=f"no model.bin and no tokenizer.json; .*--asr whisper:{tmp_path}"):
        open_asr(f"faster-whisper:{tmp_path}")


def test_damaged_weights_are_one_line(tmp_path: Path) -> None:
    pytest.importorskip("faster_whisper", reason="pip install '.[faster-whisper]'")
    for name in NEEDED:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match="does not open as a Whisper of CTranslate2"):
        open_asr(f"faster-whisper:{tmp_path}")
    with pytest.raises(FileNotFoundError, match=f"there is no folder {tmp_path / 'none'}, and faster-whisper"):
        open_asr(f"faster-whisper:{tmp_path / 'none'}")


@pytest.mark.real
def test_transcripts_are_those_of_transformers(speak: Speak, tmp_path: Path) -> None:
    pytest.importorskip("faster_whisper", reason="pip install '.[faster-whisper]'")
    if not REAL.exists():
        pytest.fail("run make real-models first")
    from ctranslate2.converters import TransformersConverter

    converter = TransformersConverter(str(REAL), copy_files=["tokenizer.json", "preprocessor_config.json"])
    asr = open_asr(f"faster-whisper:{converter.convert(str(tmp_path / 'tiny.en'))}")
    plain = open_asr(f"whisper:{REAL}")
    assert isinstance(asr, EvaluationASR) and asr.name == "faster-whisper tiny.en (float32, en)"
    wavs = [speak(text) for text in ANSWERS + QUESTIONS]
    assert asr.transcribe(None) == "" == asr.transcribe(np.zeros(16000, np.float32))
    heard = asr.comparable(asr.transcribe_all(wavs))
    assert heard == plain.comparable(plain.transcribe_all(wavs))
    long = np.concatenate([*wavs, *wavs])  # two windows, in which rounding may change a word
    assert word_error_rate([plain.transcribe(long)], [asr.transcribe(long)]).value < 0.2
    assert asr.transcribe_all(wavs[2::-1]) == asr.transcribe_all(wavs[:3])[::-1]
    with pytest.raises(ValueError, match="is an English Whisper; it cannot transcribe 'de'"):
        open_asr(f"faster-whisper:{tmp_path / 'tiny.en'}#de")
