"""Resynthesis: its figures, its gate and its picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from made_results import made_result
from spoken_test_set import ANSWERS, Speak
from tiny_vocoders import CODEBOOK, VOCOS, loud_vocoder

from eval.asr.recogniser import GrammarASR
from eval.resynthesis import (
    NoUtterances,
    ResynthesisOptions,
    cepstral_distances,
    choose,
    draw,
    mel_cepstral_distances,
    report,
    resynthesise,
)
from units.audio import HOP, num_frames, save_wav
from units.codebook import Units
from units.corpus.manifest import Utterance, write_manifest


def test_the_cepstral_distance_is_a_root_mean_square_in_decibels() -> None:
    """Log-mels that differ by one cosine of height a are 20 / ln 10 * a / sqrt(2) dB apart."""
    bands = np.arange(80) + 0.5
    below = np.random.default_rng(0).standard_normal((5, 80))
    for cosine in (1, 5, 13):
        ripple = 0.7 * np.cos(np.pi * cosine * bands / 80)
        np.testing.assert_allclose(cepstral_distances(below, below + ripple), 20 / np.log(10) * 0.7 / np.sqrt(2))
    for ignored in (np.full(80, 3.0), np.cos(np.pi * 14 * bands / 80)):  # louder; finer than 13 cosines
        np.testing.assert_allclose(cepstral_distances(below, below + ignored), 0, atol=1e-12)


def test_distances_of_wavs() -> None:
    draw_noise = np.random.default_rng(1)
    wav = draw_noise.standard_normal(8000).astype(np.float32) * 0.1
    assert mel_cepstral_distances(wav, wav).shape == (50,)
    np.testing.assert_array_equal(mel_cepstral_distances(wav, wav[:4900]), np.zeros(30))
    np.testing.assert_allclose(mel_cepstral_distances(wav, 2 * wav), 0, atol=1e-3)
    dull = np.convolve(wav, np.ones(8) / 8, mode="same").astype(np.float32)
    assert mel_cepstral_distances(wav, dull).mean() > 3


def test_only_utterances_with_words_are_chosen(tmp_path: Path) -> None:
    texts = ("one", None, "?!", "two")
    utterances = [Utterance(f"u{i}", tmp_path / "a.wav", text=text, speaker="anna") for i, text in enumerate(texts)]
    write_manifest(tmp_path / "m.jsonl", utterances)
    assert [u.id for u in choose(tmp_path / "m.jsonl", "anna", None)] == ["u0", "u3"]
    with pytest.raises(NoUtterances, match=r"m\.jsonl.*'bob'"):
        choose(tmp_path / "m.jsonl", "bob", None)


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    wav = np.sin(np.arange(16_000) / 10).astype(np.float32) * 0.3
    utterance = Utterance("a", save_wav(tmp_path / "a.wav", wav), text="one")
    encoder = SimpleNamespace(encode=lambda wav: Units.from_frames([3] * num_frames(len(wav)), CODEBOOK))
    path = draw(encoder, loud_vocoder(VOCOS), utterance, None, tmp_path / "p.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_perfect_and_a_silent_vocoder(
    asr: GrammarASR, speak: Speak, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded: dict[Units, np.ndarray] = {}

    def encode(wav: np.ndarray) -> Units:
        units = Units.from_frames([len(recorded) % 10] * num_frames(len(wav)), CODEBOOK)
        recorded.setdefault(units, wav)
        return units

    def decode(units: Units, predict_durations: bool = False) -> np.ndarray:
        return np.zeros(HOP * 10, np.float32) if predict_durations else recorded[units]

    paths = [save_wav(tmp_path / f"{i}.wav", speak(sentence)) for i, sentence in enumerate(ANSWERS)]
    utterances = [Utterance(path.stem, path, text=sentence) for path, sentence in zip(paths, ANSWERS)]
    figures, details = resynthesise(SimpleNamespace(encode=encode), SimpleNamespace(decode=decode), asr, utterances)
    assert figures["wer_true"].value == figures["wer_original"].value < 0.15
    assert figures["wer_predicted"].value == 1.0
    assert figures["length_bias_predicted"].value == -figures["length_error_predicted"].value < -0.5
    assert len(details) == len(ANSWERS)

    predicted = figures.pop("wer_predicted")
    silent = made_result(task="resynthesis", score=predicted.value, n=predicted.n, more=figures)
    assert report(silent, 0.05) == 1 and "GATE FAILED" in capsys.readouterr().out
    assert report(dataclasses.replace(silent, score=0.0), 0.15) == 0 and "gate passed" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"gate": -0.1}, {"gate": float("nan")}])
def test_options_are_checked(wrong: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .* at least "):
        ResynthesisOptions(**wrong)
