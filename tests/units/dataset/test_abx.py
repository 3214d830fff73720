"""Phones and units as fastabx reads them, and its ABX error where it is installed."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tiny_set import record_of, write_set

from units.corpus.alignments import Alignments
from units.dataset.measures import abx
from units.dataset.measures.abx import AbxError, NoItems, abx_errors, write_items
from units.dataset.measures.figures import measure, report, run
from units.dataset.quality_config import QualityConfig
from units.dataset.unit_set import UnitSet, read_unit_set

K = 6
# 50 frames a second: frame n covers its middle, (n + 1/2) / 50 s
ALIGNED = """one two\t0\t0.04\tB
one two\t0.04\t0.1\tAH0
one two\t0.1\t0.14\tsil
one two\t0.14\t0.2\tT
other\t0\t0.1\tB
other\t0.1\t0.104\tAH
other\t0.104\t0.2\tT
late\t0\t0.1\tB
late\t0.1\t0.3\tAH
late\t0.3\t0.4\tT
nobody\t0\t0.1\tB
nobody\t0.1\t0.14\tAH
nobody\t0.14\t0.2\tT
"""


@pytest.fixture
def unit_set(tmp_path: Path) -> UnitSet:
    frames = [n % K for n in range(10)]
    speakers = {"one two": "x y", "other": "z", "late": "z", "nobody": None}
    records = [record_of(name, frames, K, "hello", speaker) for name, speaker in speakers.items()]
    (tmp_path / "labels.tsv").write_text(ALIGNED)
    return read_unit_set(write_set(tmp_path / "set", records, K))


def test_phones_have_neighbours_frames_and_a_speaker(unit_set: UnitSet, tmp_path: Path) -> None:
    count = write_items(unit_set, Alignments.open(tmp_path / "labels.tsv"), tmp_path / "abx")
    # not the silence, nor a phone of 4 ms between the middles of two frames, nor one that ends behind the last frame
    assert count == 1 and (tmp_path / "abx" / "units.item").read_text().splitlines() == [
        "#file onset offset #phone prev-phone next-phone speaker",
        "u000000 0.0400 0.1000 AH B sil x_y",
    ]
    [path] = (tmp_path / "abx" / "units").iterdir()
    frames = torch.load(path, weights_only=True)
    assert path.name == "u000000.pt" and frames.shape == (10, 1) and frames[:, 0].tolist() == [n % K for n in range(10)]


def test_a_set_without_phones_is_refused(unit_set: UnitSet, tmp_path: Path) -> None:
    (tmp_path / "labels.tsv").write_text("elsewhere\t0\t0.1\tAH\n")
    with pytest.raises(NoItems, match="no phone with a neighbour on both sides"):
        write_items(unit_set, Alignments.open(tmp_path / "labels.tsv"), tmp_path / "abx")
    with pytest.raises(ValueError, match="needs --alignments"):
        QualityConfig(abx=tmp_path)


def test_fastabx_is_asked_as_zerospeech_does(
    unit_set: UnitSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def zerospeech_abx(item: Path, root: Path, **settings: object) -> float:
        assert item.is_file() and root.is_dir()
        calls.append(settings)
        return 0.1 if settings["speaker"] == "within" else 0.2

    config = QualityConfig(alignments=tmp_path / "labels.tsv", abx=tmp_path / "abx")
    monkeypatch.setattr(abx.importlib.util, "find_spec", lambda name: None)
    run(tmp_path / "set", None, config)
    assert "fastabx (Python 3.12) is not installed" in capsys.readouterr().out
    module = ModuleType("fastabx")
    module.zerospeech_abx = zerospeech_abx
    monkeypatch.setitem(sys.modules, "fastabx", module)
    monkeypatch.setattr(abx.importlib.util, "find_spec", lambda name: ModuleSpec(name, None))
    run(tmp_path / "set", None, config)
    out = capsys.readouterr().out
    assert "1 phones in" in out and "ABX error     0.100  within speakers" in out and "not installed" not in out
    assert [call["speaker"] for call in calls] == ["within", "across"]
    assert all(
        (call["distance"], call["frequency"], call["max_size_group"], call["max_x_across"], call["context"])
        == ("identical", "50", 10, 5, "within")
        for call in calls
    )


@pytest.mark.skipif(importlib.util.find_spec("fastabx") is None, reason="fastabx needs Python 3.12")
def test_the_real_fastabx_tells_phones_apart(tmp_path: Path) -> None:
    lines, records = [], []
    for speaker in "xy":
        for take in range(3):
            for label, unit in (("AA", 1), ("IY", 2)):
                name = f"{speaker}{take}{label}"
                records.append(record_of(name, [0, 0, unit, unit, unit, 0, 0], K, "hello", speaker))
                lines += [f"{name}\t0\t0.04\tB", f"{name}\t0.04\t0.1\t{label}", f"{name}\t0.1\t0.14\tT"]
    (tmp_path / "labels.tsv").write_text("\n".join(lines))
    unit_set = read_unit_set(write_set(tmp_path / "set", records, K))
    write_items(unit_set, Alignments.open(tmp_path / "labels.tsv"), tmp_path / "abx")
    assert abx_errors(tmp_path / "abx", 50) == (AbxError("within", 0.0), AbxError("across", 0.0))


def test_a_report_without_abx_has_no_line(unit_set: UnitSet) -> None:
    assert "ABX" not in report(measure(unit_set))
