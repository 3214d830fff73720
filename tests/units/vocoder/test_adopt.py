"""Published files become folders that belong together."""

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


def adopt(what: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"units.{what}.adopt", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["fairseq_base", "fairseq_large"])
def test_ears_and_voice_of_fairseq_s_files_belong_together(name: str, tmp_path: Path) -> None:
    theirs, ears, voice = DATA / name, tmp_path / "ears", tmp_path / "voice"
    done = adopt("encoder", theirs / "hubert.pt", theirs / "km.bin", ears, "--layer", 3)
    assert done.returncode == 0, done.stderr
    done = adopt("vocoder", theirs / "vocoder.pt", ears, voice, "--vocoder_config", theirs / "vocoder_config.json")
    assert done.returncode == 0, done.stderr
    encoder, vocoder = UnitEncoder.from_pretrained(ears), UnitVocoder.from_pretrained(voice)
    wav = load_wav(DATA / "wav" / "u1-slt.wav")
    frames = dict(line.split("\t") for line in (theirs / "units.tsv").read_text().splitlines())
    said = encoder.encode(wav)
    assert list(said.frames()) == [int(unit) for unit in frames["u1-slt.wav"].split()]
    published = UnitVocoder.from_pretrained(theirs / "vocoder.pt", config=theirs / "vocoder_config.json")
    np.testing.assert_array_equal(
        vocoder.decode(said), published.decode(Units(said.ids, said.durations, published.codebook))
    )
    told = adopt("vocoder", theirs / "vocoder.pt", tmp_path, voice, "--vocoder_config", theirs / "vocoder_config.json")
    assert told.returncode == 2 and len(told.stderr.splitlines()) == 1  # there is no codebook.json


def test_an_unknown_layer_is_asked_for(tmp_path: Path) -> None:
    theirs = DATA / "fairseq_base"
    told = adopt("encoder", theirs / "hubert.pt", theirs / "km.bin", tmp_path / "ears")
    assert told.returncode == 2 and "--layer N" in told.stderr and not (tmp_path / "ears").exists()
