"""The spoken test set, the evaluation ASR and a measurement, for the tests of eval."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from spoken_test_set import LookUpModel, Speak, espeak, write_corpus

from eval.asr.recogniser import GrammarASR
from eval.measurement import Measurement
from eval.model import as_speech_model
from eval.test_set import TestSet
from instruct_data.toy.grammar import asr_grammar


@pytest.fixture(scope="session")
def speak() -> Speak:
    """Text -> wav by espeak, each sentence spoken once."""
    return functools.cache(espeak())


@pytest.fixture(scope="session")
def asr(tmp_path_factory: pytest.TempPathFactory) -> GrammarASR:
    pytest.importorskip("pocketsphinx", reason="the evaluation ASR needs pocketsphinx: pip install '.[eval]'")
    path = tmp_path_factory.mktemp("asr") / "asr_grammar.jsgf"
    path.write_text(asr_grammar())
    return GrammarASR(path)


@pytest.fixture
def corpus(tmp_path: Path, speak: Speak) -> Path:
    return write_corpus(tmp_path / "run" / "corpus", speak, asr_grammar())


@pytest.fixture
def measurement(tmp_path: Path, corpus: Path, asr: GrammarASR, speak: Speak) -> Measurement:
    """Of a new LookUpModel, which a test may change."""
    keep = tmp_path / "run" / "results" / "answers"
    return Measurement(as_speech_model(LookUpModel(speak)), TestSet(corpus), asr, keep)
