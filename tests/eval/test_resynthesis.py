"""The figures and the picture of a resynthesis that need no recogniser."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_vocoders import CODEBOOK, VOCOS, loud_vocoder

from eval.resynthesis import cepstral_distances, choose, draw, mel_cepstral_distances
from units.audio import num_frames, save_wav
from units.codebook import Units
from units.corpus.manifest import Utterance, write_manifest


def test_the_cepstral_distance_is_a_root_mean_square_in_decibels() -> None:
    """A ripple of log-mels by one cosine of height a is 20 / ln 10 * a / sqrt(2) dB away, whatever lies below it."""
    bands = np.arange(80) + 0.5
    below = np.random.default_rng(0).standard_normal((5, 80))
    for cosine in (1, 5, 13):
        ripple = 0.7 * np.cos(np.pi * cosine * bands / 80)
        np.testing.assert_allclose(cepstral_distances(below, below + ripple), 20 / np.log(10) * 0.7 / np.sqrt(2))
    for unheard in (np.full(80, 3.0), np.cos(np.pi * 14 * bands / 80)):  # louder; finer than 13 cosines
        np.testing.assert_allclose(cepstral_distances(below, below + unheard), 0, atol=1e-12)


def test_distances_of_wavs() -> None:
    draw_noise = np.random.default_rng(1)
    wav = draw_noise.standard_normal(8000).astype(np.float32) * 0.1
    assert mel_cepstral_distances(wav, wav).shape == (50,)
    np.testing.assert_array_equal(mel_cepstral_distances(wav, wav[:4900]), np.zeros(30))
    np.testing.assert_allclose(mel_cepstral_distances(wav, 2 * wav), 0, atol=1e-3)
    dull = np.convolve(wav, np.ones(8) / 8, mode="same").astype(np.float32)
    assert mel_cepstral_distances(wav, dull).mean() > 3


def test_only_what_has_words_is_chosen(tmp_path: Path) -> None:
    texts = ("one", None, "?!", "two")
    said = [Utterance(f"u{i}", tmp_path / "a.wav", text=text, speaker="anna") for i, text in enumerate(texts)]
    write_manifest(tmp_path / "m.jsonl", said)
    assert [u.id for u in choose(tmp_path / "m.jsonl", "anna", None)] == ["u0", "u3"]
    with pytest.raises(ValueError, match="no utterance of the speaker 'bob'"):
        choose(tmp_path / "m.jsonl", "bob", None)


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    wav = np.sin(np.arange(16_000) / 10).astype(np.float32) * 0.3
    utterance = Utterance("a", save_wav(tmp_path / "a.wav", wav), text="one")
    encoder = SimpleNamespace(encode=lambda wav: Units.from_frames([3] * num_frames(len(wav)), CODEBOOK))
    path = draw(encoder, loud_vocoder(VOCOS), utterance, None, tmp_path / "p.png")
    assert path.read_bytes().startswith(b"\x89PNG")
