"""The codec that ships: both parts fit together, are small, stream, and are used where none is given."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from tiny_parts import tones

from units import notation
from units.audio import load_wav, save_wav
from units.codebook import Units
from units.dataset.extract import main as extract
from units.encoder.unit_encoder import UnitEncoder
from units.shipped import CODEC, UNIT_ENCODERS
from units.vocoder.unit_vocoder import UnitVocoder
from units.vocoder.vocode import main as vocode

LARGEST = 12_000_000  # bytes of a part


def test_extract_and_vocode_without_an_encoder_or_a_vocoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_wav(tmp_path / "a.wav", tones(1.2))
    extract.cli([str(tmp_path / "a.wav")])
    line = capsys.readouterr().out
    ids = notation.read(line.strip())
    assert 5 < len(ids) < 60 and max(ids) < 500
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(line.encode())))
    vocode.cli(["-", str(tmp_path / "again.wav")])
    again = load_wav(tmp_path / "again.wav")
    assert 0.2 < len(again) / 16_000 < 5 and np.isfinite(again).all() and np.std(again) > 1e-3


def test_its_parts_fit_together_and_stream() -> None:
    encoder, vocoder = (
        UnitEncoder.from_pretrained(CODEC / "unit_encoder"),
        UnitVocoder.from_pretrained(CODEC / "vocoder"),
    )
    assert encoder.codebook == vocoder.codebook and encoder.codebook.size == 500
    units = encoder.encode(tones(2.0, seed=3))
    whole = vocoder.decode(units)
    halves = [
        Units(units.ids[part], (units.durations or ())[part], units.codebook) for part in (slice(20), slice(20, None))
    ]
    np.testing.assert_array_equal(np.concatenate(list(vocoder.stream(halves))), whole)
    assert vocoder.delay_ms < 800


def test_unit_encoders_that_ship_have_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    save_wav(tmp_path / "a.wav", tones(0.8))
    said = []
    for chosen in ([], ["--encoder", "codec"], ["--encoder", "starter"]):
        extract.cli([str(tmp_path / "a.wav"), *chosen])
        said.append(notation.read(capsys.readouterr().out.strip()))
    assert said[0] == said[1] != said[2]
    assert {name: UnitEncoder.from_pretrained(name).codebook.size for name in UNIT_ENCODERS} == {
        "codec": 500,
        "starter": 100,
    }


def test_it_is_small_and_has_no_pickle() -> None:
    files = [path for path in CODEC.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".jsonl", ".md", ".safetensors"}
    for part in ("unit_encoder/encoder", "vocoder"):
        assert sum(path.stat().st_size for path in files if (CODEC / part) in path.parents) < LARGEST
