"""The evaluation ASR on real speech."""

from __future__ import annotations

import builtins
from pathlib import Path

import numpy as np
import pytest
from spoken_test_set import ANSWERS, Speak

from eval.asr.recogniser import ASRNotInstalled, EvaluationASR, GrammarASR, GrammarError, open_asr
from eval.metrics import word_error_rate


def test_speech_is_recognised_independently_of_what_came_before(asr: GrammarASR, speak: Speak) -> None:
    sentences = ANSWERS + ["the happy blue tiger sings"] * 3
    wavs = [speak(sentence) for sentence in sentences]
    texts = [asr.transcribe(wav) for wav in wavs]
    assert word_error_rate(sentences, texts).value < 0.15
    assert asr.transcribe_all(wavs, workers=2) == texts  # in parallel: the same, in order
    assert asr.transcribe_all(wavs[::-1], workers=1) == texts[::-1]


def test_silence_has_no_words(asr: GrammarASR) -> None:
    assert asr.transcribe(np.zeros(16000, np.float32)) == ""
    assert asr.transcribe(None) == ""
    assert asr.transcribe(np.zeros(0)) == ""


def test_a_missing_or_broken_grammar_is_refused(asr: GrammarASR, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="asr_grammar.jsgf"):
        GrammarASR(tmp_path / "none.jsgf")
    (tmp_path / "bad.jsgf").write_text("this is no grammar")
    with pytest.raises(GrammarError, match="bad.jsgf"):
        GrammarASR(tmp_path / "bad.jsgf")


def test_without_pocketsphinx_the_message_says_how_to_install_it(
    asr: GrammarASR, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "pocketsphinx":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ASRNotInstalled, match=r"pip install '\.\[eval\]'"):
        GrammarASR(asr.grammar)


def test_a_grammar_opens_a_recogniser(asr: GrammarASR) -> None:
    assert open_asr(None) is None
    opened = open_asr(None, asr.grammar)
    assert isinstance(opened, EvaluationASR) and opened.name == asr.name
    assert asr.name.startswith("pocketsphinx ")
