"""Measured models: whole SpeechModels, objects with answer(wav), and functions that return either."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from spoken_test_set import CODEBOOK, LookUpModel, Speak, TextOnly

from eval.evaluation import evaluate
from eval.measurement import Measurement, resampled
from eval.model import (
    AdaptedModel,
    NoAnswer,
    UnknownModel,
    as_speech_model,
    codebook_of,
    open_measured_model,
    question_units,
)
from eval.results import load_result
from eval.run import main
from eval.test_set import TestSet
from speechgpt.answers import Answer, NotSupported, SpeechModel
from speechgpt.sampling import Sampling


def test_an_object_with_answer_becomes_a_speech_model(speak: Speak) -> None:
    model = as_speech_model(LookUpModel(speak))
    assert isinstance(model, SpeechModel) and as_speech_model(model) is model
    assert model.capabilities == {"answer", "transcribe", "say", "chat"}
    assert (model.name, model.sample_rate, codebook_of(model)) == ("made 1", 16_000, f"made {CODEBOOK.fingerprint}")
    answer = model.answer(speak("what color does anna like"))
    assert (answer.text, question_units(answer)) == ("anna likes green", 3)
    assert model.transcribe(speak("what is nine plus one")) == "what is nine plus one"
    assert model.chat("what is nine plus one") == "that makes one"
    assert model.say("hello").wav is not None


def test_what_an_object_lacks_is_not_supported() -> None:
    model = as_speech_model(TextOnly())
    assert model.capabilities == {"answer"} and codebook_of(model) == "-"
    answer = model.answer(np.zeros(400, np.float32))
    assert answer.text == "eight is bigger" and question_units(answer) is None
    for ask in (lambda: model.say("a"), lambda: model.chat("a"), lambda: list(model.stream("a"))):
        with pytest.raises(NotSupported):
            ask()


def test_an_answer_without_any_part_is_refused() -> None:
    model = AdaptedModel(SimpleNamespace(answer=lambda wav: "text"))
    with pytest.raises(NoAnswer, match="str"):
        model.answer(np.zeros(400, np.float32))


def test_a_function_returns_the_model(corpus: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "my_models.py").write_text(
        "from types import SimpleNamespace\n"
        "def baseline(device):\n"
        "    return SimpleNamespace(name=f'theirs on {device}', transcribe=lambda wav: 'what is two plus three')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for again in ("", "(was done)"):
        main("my_models:baseline", corpus, tmp_path / "results", tasks="asr")
        assert again in capsys.readouterr().out
    result = load_result(tmp_path / "results" / "asr.json")
    assert result.model == "theirs on cpu" and 0 < result.score < 1
    for wrong in ("my_models:nothing", "no_models:baseline"):
        with pytest.raises(UnknownModel, match=wrong):
            open_measured_model(wrong, "cpu")


def test_the_longest_reply_is_said_to_the_model_and_recorded(corpus: Path, tmp_path: Path) -> None:
    said = []

    def answer(wav: np.ndarray, sampling: Sampling) -> SimpleNamespace:
        said.append(sampling.max_new_tokens)
        return SimpleNamespace(text="that makes two")

    def measured(tokens: int | None) -> int | None:
        before = len(said)
        model = as_speech_model(SimpleNamespace(name="made 1", answer=answer))
        measurement = Measurement(model, TestSet(corpus), None, tmp_path / "kept", reply_tokens=tokens)
        evaluate(measurement, tmp_path / "results", ["spoken_qa"])
        assert set(said[before:]) <= {tokens or Sampling().max_new_tokens}
        return load_result(tmp_path / "results" / "spoken_qa.json").reply_tokens if said[before:] else -1

    assert [measured(tokens) for tokens in (48, 48, None, 7)] == [48, -1, None, 7]  # -1: it was measured before


def test_a_model_of_another_sample_rate_receives_and_returns_it(corpus: Path, tmp_path: Path) -> None:
    lengths = []

    def answer(wav: np.ndarray) -> SimpleNamespace:
        lengths.append(len(wav))
        return SimpleNamespace(wav=wav)

    model = as_speech_model(SimpleNamespace(answer=answer, sample_rate=24_000))
    measurement = Measurement(model, TestSet(corpus), None, tmp_path)
    wav = np.sin(np.arange(16_000) / 20).astype(np.float32)
    (returned,) = measurement.answer([wav])
    assert lengths == [24_000] and isinstance(returned, Answer)
    assert returned.wav is not None and returned.wav.shape == wav.shape and returned.wav.dtype == np.float32
    np.testing.assert_allclose(returned.wav[200:-200], wav[200:-200], atol=1e-3)
    assert resampled(wav, 16_000, 16_000) is wav
