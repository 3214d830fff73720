"""Whisper's states in the full window: equal to the published BLSP code's, in batches and beyond the window."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from blsp_oracles import FOLDER, NAMES, SOUNDS, WAVS
from transformers import WhisperFeatureExtractor

from units.audio import load_wav
from units.encoder.whisper_window import FullWindowFeatures
from variants.blsp.upstream import adopt


@pytest.fixture(scope="module", params=NAMES)
def adopted(request, tmp_path_factory) -> tuple[str, Path]:
    return request.param, adopt(FOLDER / request.param / "checkpoint", tmp_path_factory.mktemp("whisper") / "out")


@pytest.fixture(scope="module")
def features(adopted) -> FullWindowFeatures:
    return FullWindowFeatures.from_pretrained(adopted[1] / "encoder", 2)


@pytest.fixture(scope="module")
def wavs() -> list[np.ndarray]:
    return [load_wav(WAVS / f"{sound}.wav") for sound in SOUNDS]


def test_states_are_the_published_ones(adopted, features, wavs) -> None:
    expected = np.load(FOLDER / adopted[0] / "expected.npz")
    for sound, wav, states in zip(SOUNDS, wavs, features(wavs)):
        assert len(states) == features.grid.num_frames(len(wav)) == -(-len(wav) // 320)
        np.testing.assert_allclose(states, expected[f"{sound}/encoder_states"], atol=1e-4)
        np.testing.assert_allclose(features([wav])[0], states, atol=1e-5)


def test_mels_are_transformers_ones(adopted, features, wavs) -> None:
    expected = np.load(FOLDER / adopted[0] / "expected.npz")["u9-awb/mel"]
    np.testing.assert_allclose(features.mel(wavs[2])[:, : expected.shape[1]], expected, atol=1e-4)
    extractor = WhisperFeatureExtractor.from_pretrained(FOLDER / adopted[0] / "checkpoint")
    for wav in (wavs[0], np.tile(wavs[3], 20)[: features.window]):  # the second one fills the window
        given = extractor(wav, sampling_rate=16_000, return_tensors="np").input_features[0]
        np.testing.assert_allclose(features.mel(wav), given, atol=1e-4)


@pytest.mark.parametrize("beyond", [0, 1, 5000])
def test_beyond_the_window_nothing_is_lost(features, wavs, beyond: int) -> None:
    wav = np.resize(np.concatenate(wavs), features.window + beyond)
    (states,) = features([wav])
    assert len(states) == features.grid.num_frames(len(wav))
    first = features([wav[: features.window]])[0]
    torch.testing.assert_close(states[: len(first)], first)
    if beyond:
        torch.testing.assert_close(states[len(first) :], features([wav[features.window :]])[0])


def test_a_lower_layer_has_no_last_norm(adopted, features) -> None:
    lower = FullWindowFeatures.from_pretrained(adopted[1] / "encoder", 1)
    assert isinstance(lower.model.layer_norm, torch.nn.Identity) and len(lower.model.layers) == 1
    assert not isinstance(features.model.layer_norm, torch.nn.Identity)
