"""Published files become a unit encoder and a vocoder that fit each other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from reference import DATA

from units.audio import load_wav
from units.codebook import Units
from units.encoder.unit_encoder import UnitEncoder
from units.vocoder.unit_vocoder import UnitVocoder


def adopt(room: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`python -m units.encoder.adopt` or `python -m units.vocoder.adopt`."""
    command = [sys.executable, "-m", f"units.{room}.adopt", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["fairseq_base", "fairseq_large"])
def test_an_adopted_unit_encoder_and_vocoder_fit_each_other(name: str, tmp_path: Path) -> None:
    published, encoder_folder, vocoder_folder = DATA / name, tmp_path / "unit_encoder", tmp_path / "vocoder"
    config = ["--vocoder_config", published / "vocoder_config.json"]
    done = adopt("encoder", published / "hubert.pt", published / "km.bin", encoder_folder, "--layer", 3)
    assert done.returncode == 0, done.stderr
    done = adopt("vocoder", published / "vocoder.pt", encoder_folder, vocoder_folder, *config)
    assert done.returncode == 0, done.stderr
    encoder, vocoder = UnitEncoder.from_pretrained(encoder_folder), UnitVocoder.from_pretrained(vocoder_folder)
    units = encoder.encode(load_wav(DATA / "wav" / "u1-slt.wav"))
    frames = dict(line.split("\t") for line in (published / "units.tsv").read_text().splitlines())
    assert list(units.frames()) == [int(unit) for unit in frames["u1-slt.wav"].split()]
    reference = UnitVocoder.from_pretrained(published / "vocoder.pt", config=published / "vocoder_config.json")
    np.testing.assert_array_equal(
        vocoder.decode(units), reference.decode(Units(units.ids, units.durations, reference.codebook))
    )


def test_adopting_for_a_folder_without_a_codebook_is_a_one_line_error(tmp_path: Path) -> None:
    published = DATA / "fairseq_base"
    config = ["--vocoder_config", published / "vocoder_config.json"]
    done = adopt("vocoder", published / "vocoder.pt", tmp_path, tmp_path / "vocoder", *config)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "codebook.json" in done.stderr and not (tmp_path / "vocoder").exists()


def test_an_encoder_without_a_known_layer_needs_the_option(tmp_path: Path) -> None:
    published = DATA / "fairseq_base"
    done = adopt("encoder", published / "hubert.pt", published / "km.bin", tmp_path / "unit_encoder")
    assert done.returncode == 2 and "--layer N" in done.stderr and not (tmp_path / "unit_encoder").exists()
