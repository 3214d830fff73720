"""Units of clean and perturbed recordings: equal where nothing is perturbed, further apart the more is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_parts import tones

from units.audio import save_wav
from units.codebook import CodebookMismatch, Units
from units.corpus.manifest import Utterance
from units.dataset import quality
from units.dataset.measures.perturbed_units import PERTURBATIONS, perturbed_distances
from units.dataset.shards import extract
from units.dataset.unit_set import UnitRecord, read_unit_set, write_unit_set
from units.encoder.mfcc import MfccFeatures
from units.encoder.pretraining.perturb import over_noise
from units.encoder.unit_encoder import UnitEncoder


@pytest.fixture(scope="module")
def encoder() -> UnitEncoder:
    features = MfccFeatures()
    [frames] = features([tones(4.0, seed=9)])
    return UnitEncoder.from_features(features, frames[:: len(frames) // 16][:16], "tiny", "utterance")


@pytest.fixture(scope="module")
def unit_set(encoder: UnitEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    rows = [Utterance(f"u{i}", save_wav(folder / f"u{i}.wav", tones(1.5, seed=i)), duration=1.0) for i in range(6)]
    extract(rows, folder / "units", encoder)
    return folder / "units"


def test_distances_of_known_perturbations(
    encoder: UnitEncoder, unit_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "units.dataset.measures.perturbed_units.PERTURBATIONS",
        {
            "nothing": lambda wav, draw: wav,
            "a little": lambda wav, draw: over_noise(wav, 40.0, draw),
            "much": lambda wav, draw: over_noise(wav, 0.0, draw),
            "another segment": lambda wav, draw: np.zeros_like(wav),
        },
    )
    found = {one.of: one for one in perturbed_distances(read_unit_set(unit_set), encoder)}
    means = [one.mean for one in found.values()]
    assert [one.pairs for one in found.values()] == [6] * 4 and list(found)[0] == "clean, and nothing"
    assert means[0] == 0 and means[0] < means[1] < means[2] <= means[3] <= 1
    [few] = {one.pairs for one in perturbed_distances(read_unit_set(unit_set), encoder, utterances=2)}
    assert few == 2


def test_the_command_adds_them_to_the_figures(encoder: UnitEncoder, unit_set: Path, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path / "enc")
    quality.main.cli(
        [str(unit_set), "--encoder", str(tmp_path / "enc"), "--perturbed", "3", "--out", str(tmp_path / "q.json")]
    )
    sentences = json.loads((tmp_path / "q.json").read_text())["sentences"]
    assert [one["of"] for one in sentences] == [f"clean, and {kind}" for kind in PERTURBATIONS]
    assert all(0 < one["mean"] <= 1 and one["pairs"] == 3 for one in sentences)


def test_another_encoder_and_a_set_without_audio_are_refused(
    encoder: UnitEncoder, unit_set: Path, tmp_path: Path
) -> None:
    other = UnitEncoder.from_features(MfccFeatures(), torch.zeros(16, encoder.features.dim), "tiny", "utterance")
    with pytest.raises(CodebookMismatch):
        perturbed_distances(read_unit_set(unit_set), other)
    mute = UnitRecord("a", Units((1, 2), (1, 1), encoder.codebook), 720)
    write_unit_set(tmp_path / "mute", [mute], encoder.codebook)
    with pytest.raises(ValueError, match="does not say where the audio of 'a' lies"):
        perturbed_distances(read_unit_set(tmp_path / "mute"), encoder)
