"""units-vocode: every form of units to wavs, resumed, refusals listed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_vocoders import CODEBOOK, HIFIGAN, ODD_HIFIGAN, loud_vocoder

from units.audio import save_wav
from units.codebook import Codebook, Units
from units.dataset import unit_set
from units.dataset.unit_set import UnitRecord
from units.vocoder.published import config_of, write_weights
from units.vocoder.unit_vocoder import UnitVocoder
from units.vocoder.vocode import cli

TEXT = """\
a|1 2 2 7
3 4

<sosp><5><6><eosp>
deep/er|<sosp><8><eosp>
"""
IDS = {"a": (1, 2, 2, 7), "00002": (3, 4), "00004": (5, 6), "deep/er": (8,)}
REFUSED = """\
far|12
word|1 b
../out|3
a|3
nothing|
open|<sosp><3>
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocoder folder of three voices."""
    vocoder = loud_vocoder(ODD_HIFIGAN)
    vocoder.speakers = ("anna", "ben", "cleo")
    return vocoder.save_pretrained(tmp_path_factory.mktemp("vocoder"))


def spoken(out: Path) -> dict[str, np.ndarray]:
    import soundfile  # load_wav wants at least 25 ms

    return {
        str(path.relative_to(out).with_suffix("")): soundfile.read(path, dtype="float32")[0]
        for path in out.rglob("*.wav")
    }


def assert_same(out: Path, expected: dict[str, np.ndarray]) -> None:
    found = spoken(out)
    assert found.keys() == expected.keys()
    for name, wav in expected.items():
        np.testing.assert_allclose(found[name], np.clip(wav, -1, 1), atol=1e-4)  # 16 bits


def write_set(folder: Path, records: list[UnitRecord], codebook: Codebook = CODEBOOK) -> Path:
    unit_set.write_shard(unit_set.shard_path(folder, 0), records, codebook)
    facts = {
        "codebook": json.loads(codebook.to_json()),
        "utterances": len(records),
        "seconds": 1.0,
        "shards": 1,
        "refused": 0,
    }
    (folder / unit_set.COMPLETION_FILE).write_text(json.dumps(facts))
    return folder


def test_every_form_of_line_is_spoken_and_every_bad_one_listed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "units.txt").write_text(TEXT + REFUSED)
    cli([str(tmp_path / "units.txt"), str(tmp_path / "out"), "--vocoder", str(folder)])
    vocoder = UnitVocoder.from_pretrained(folder)
    assert_same(tmp_path / "out", {name: vocoder.decode(Units(ids, None, CODEBOOK)) for name, ids in IDS.items()})
    refused = [json.loads(line) for line in (tmp_path / "out" / "refused.jsonl").read_text().splitlines()]
    reasons = {one["id"]: one["reason"] for one in refused}
    for name, reason in {
        "far": "line 6: .*12 to 12.*0 to 11", "word": "line 7: .*not units", "../out": "line 8: .*below the output",
        "a": "line 9: .*stands twice", "nothing": "line 10: .*at least one", "open": "line 11: not spelled units",
    }.items():  # fmt: skip
        assert re.match(reason, reasons.pop(name)), name
    assert reasons == {}
    assert "4 wavs" in capsys.readouterr().out and not (tmp_path / "out.wav").exists()


def test_without_durations_each_id_is_a_frame_and_speakers_have_names(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "units.txt").write_text(TEXT)
    vocoder = UnitVocoder.from_pretrained(folder)
    for speaker in ("cleo", "2"):
        out = tmp_path / speaker
        cli([str(tmp_path / "units.txt"), str(out), "--vocoder", str(folder), "--no-durations", "--speaker", speaker])
        expected = {name: vocoder.decode(Units.from_frames(ids, CODEBOOK), speaker=2) for name, ids in IDS.items()}
        assert_same(out, expected)
        assert len(expected["a"]) == 4 * 320


def test_a_unit_set_keeps_its_durations(folder: Path, tmp_path: Path) -> None:
    all_units = {"x": Units((1, 2, 3), (4, 1, 2), CODEBOOK), "y/z": Units((5,), (30,), CODEBOOK)}
    records = [UnitRecord(name, units, 0) for name, units in all_units.items()]
    source = write_set(tmp_path / "set", [*records, UnitRecord("none", Units((), (), CODEBOOK), 0)])
    cli([str(source), str(tmp_path / "out"), "--vocoder", str(folder)])
    vocoder = UnitVocoder.from_pretrained(folder)
    assert_same(tmp_path / "out", {name: vocoder.decode(units) for name, units in all_units.items()})
    assert json.loads((tmp_path / "out" / "refused.jsonl").read_text())["id"] == "none"


def test_a_published_vocoder_speaks_a_unit_set(tmp_path: Path) -> None:
    vocoder = loud_vocoder(HIFIGAN)
    weights = write_weights(tmp_path / "g_00500000", vocoder.network)
    (tmp_path / "km.json").write_text(json.dumps(config_of(HIFIGAN, CODEBOOK.size)))
    units = Units((1, 2, 3), (4, 1, 2), CODEBOOK)
    source = write_set(tmp_path / "set", [UnitRecord("x", units, 0)])
    cli([str(source), str(tmp_path / "out"), "--vocoder", str(weights), "--vocoder-config", str(tmp_path / "km.json")])
    assert_same(tmp_path / "out", {"x": vocoder.decode(units)})


def test_bfloat16_is_asked_for_by_name(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "units.txt").write_text(TEXT)
    cli([str(tmp_path / "units.txt"), str(tmp_path / "out"), "--vocoder", str(folder), "--dtype", "bfloat16"])
    vocoder = UnitVocoder.from_pretrained(folder, precision=torch.bfloat16)
    exact = UnitVocoder.from_pretrained(folder)
    for name, ids in IDS.items():
        found, units = spoken(tmp_path / "out")[name], Units(ids, None, CODEBOOK)
        assert np.abs(found - vocoder.decode(units)).max() < 1e-4
        assert np.abs(found - exact.decode(units)).max() > 1e-4  # else the choice would do nothing
    with pytest.raises(SystemExit):  # the folder was begun in another precision
        cli([str(tmp_path / "units.txt"), str(tmp_path / "out"), "--vocoder", str(folder)])
    assert "was begun with" in capsys.readouterr().err
    UnitVocoder(CODEBOOK).save_pretrained(tmp_path / "mel")
    with pytest.raises(ValueError, match='head "mel", which speaks in float32 only'):
        UnitVocoder.from_pretrained(tmp_path / "mel", precision=torch.bfloat16)


def test_a_second_run_speaks_only_what_is_missing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "units.txt").write_text(TEXT)
    args = [str(tmp_path / "units.txt"), str(tmp_path / "out"), "--vocoder", str(folder)]
    written: list[Path] = []

    def killed_after_two(path: Path, wav: np.ndarray) -> Path:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        return save_wav(path, wav)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("units.vocoder.vocode.save_wav", killed_after_two)
        cli(args)
    times = {path: path.stat().st_mtime_ns for path in written}
    capsys.readouterr()
    cli(args)
    assert "2 wavs" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in written} == times
    assert spoken(tmp_path / "out").keys() == IDS.keys()


@pytest.mark.parametrize(
    "change, message",
    [
        (["--speaker", "dora"], "no speaker 'dora'"),
        (["--speaker", "3"], "out of range; this vocoder has 0 to 2"),
        (["--speaker", "1"], "was begun with"),
        (["--no-durations"], "was begun with"),
        (["--vocoder", "nowhere"], "no config.json in nowhere"),
        (["--vocoder-config"], None),
    ],
)
def test_a_users_error_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str | None
) -> None:
    (tmp_path / "units.txt").write_text("1 2\n")
    args = [str(tmp_path / "units.txt"), str(tmp_path / "out"), "--vocoder", str(folder)]
    cli(args)
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        cli([*args, *change])
    assert exit.value.code == 2
    if message:
        said = capsys.readouterr().err.strip().splitlines()
        assert said[-1].startswith("units-vocode: ") and message in said[-1]


def test_sources_that_cannot_be_spoken_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = Codebook("other", "mfcc", 0, 12, 50.0, "utterance", "ffff0000")
    source = write_set(tmp_path / "set", [UnitRecord("x", Units((1,), (4,), foreign), 0)], foreign)
    own = write_set(tmp_path / "own", [UnitRecord("x", Units((1,), (4,), CODEBOOK), 0)])
    for args, message in (
        ([str(source)], "'other'"), ([str(tmp_path / "no.txt")], "no such"), ([str(own), "--no-durations"], "text files"),
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            cli([args[0], str(tmp_path / "out"), "--vocoder", str(folder), *args[1:]])
        assert message in capsys.readouterr().err
