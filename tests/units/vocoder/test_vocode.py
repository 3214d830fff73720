"""units-vocode: every form of units becomes wavs, a killed run resumes, refused lines are listed."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import DATA
from refused import refused
from tiny_tone_corpus import write_unit_set
from tiny_vocoders import CODEBOOK, HIFIGAN, ODD_HIFIGAN, loud_vocoder

from units.audio import save_wav
from units.codebook import Codebook, Units
from units.dataset.unit_set import UnitRecord, read_unit_set
from units.runtime.command import INTERRUPTED, SOME_REFUSED, WRONG_CALL
from units.runtime.files.file_names import read_list
from units.vocoder.errors import VocoderError, VocoderReason
from units.vocoder.published import config_of, write_weights
from units.vocoder.unit_vocoder import UnitVocoder
from units.vocoder.vocode import main
from units.vocoder.vocode_lines import VocodeReason

TEXT = """\
a|1 2 2 7
3 4

<sosp><5><6><eosp>
deep/er|<sosp><8><eosp>
"""
IDS = {"a": (1, 2, 2, 7), "00002": (3, 4), "00004": (5, 6), "deep/er": (8,)}
REFUSED = {  # line 6 and the following ones, and why each is refused
    "far|12": ("far", VocodeReason.OUT_OF_RANGE, "12"),
    "word|1 b": ("word", VocodeReason.NOT_UNITS, "1 b"),
    "../out|3": ("../out", VocodeReason.OUTSIDE_FOLDER, "../out"),
    "a|3": ("a", VocodeReason.SAME_ID, "'a'"),
    "nothing|": ("nothing", VocodeReason.NO_UNITS, ""),
    "open|<sosp><3>": ("open", VocodeReason.NOT_UNITS, "<sosp><3>"),
    "beyond|<sosp><12><eosp>": ("beyond", VocodeReason.OUT_OF_RANGE, "12"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocoder folder with three speakers."""
    vocoder = loud_vocoder(ODD_HIFIGAN)
    vocoder.speakers = ("anna", "ben", "cleo")
    return vocoder.save_pretrained(tmp_path_factory.mktemp("vocoder"))


def spoken(out: Path) -> dict[str, np.ndarray]:
    import soundfile  # load_wav needs at least 25 ms

    return {
        str(path.relative_to(out).with_suffix("")): soundfile.read(path, dtype="float32")[0]
        for path in out.rglob("*.wav")
    }


def assert_same(out: Path, expected: dict[str, np.ndarray]) -> None:
    found = spoken(out)
    assert found.keys() == expected.keys()
    for name, wav in expected.items():
        np.testing.assert_allclose(found[name], np.clip(wav, -1, 1), atol=1e-4)  # 16 bits


def vocode(source: Path, out: Path, vocoder: Path, *options: object) -> None:
    """units-vocode SOURCE OUT --vocoder VOCODER ..."""
    main.cli([str(source), str(out), "--vocoder", str(vocoder), *map(str, options)])


def test_every_form_of_line_is_vocoded_and_every_bad_line_listed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "units.txt").write_text(TEXT + "\n".join(REFUSED))
    with pytest.raises(SystemExit) as ended:
        vocode(tmp_path / "units.txt", tmp_path / "out", folder)
    assert ended.value.code == SOME_REFUSED
    vocoder = UnitVocoder.from_pretrained(folder)
    assert_same(tmp_path / "out", {name: vocoder.decode(Units(ids, None, CODEBOOK)) for name, ids in IDS.items()})
    rows = [json.loads(line) for line in (tmp_path / "out" / "refused.jsonl").read_text().splitlines()]
    assert len(rows) == len(REFUSED)
    for number, (row, (name, reason, value)) in enumerate(zip(rows, REFUSED.values()), 6):
        assert (row["id"], row["reason"]) == (name, reason.value)
        assert f"line {number}:" in row["detail"] and value in row["detail"]
    printed = capsys.readouterr().out
    assert "4 wavs" in printed and "7 refused" in printed and not (tmp_path / "out.wav").exists()


def test_odd_ids_and_bad_lines_stop_no_other_line(folder: Path, tmp_path: Path) -> None:
    long = "l" * 260
    lines = [
        "\ufeffmark|1 2",
        f"{long}|3",
        "a/|4",
        "./a|5",
        "a|6",
        "A|7",
        "con|8",
        "你好|9",
        "你/|1",
        "9|99999999999999999",
    ]
    content = "\n".join(lines).encode() + b"\nbad\xff|1\n|2\n" + b"9" * 5000 + b"\nlast|1\n"
    (tmp_path / "units.txt").write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        vocode(tmp_path / "units.txt", tmp_path / "out", folder)
    assert ended.value.code == SOME_REFUSED
    names = read_list(tmp_path / "out")
    assert set(names) == {long, "a/", "./a", "A", "con", "你/"}
    vocoder = UnitVocoder.from_pretrained(folder)
    ids = {"mark": 1, "a": 6, "你好": 9, "last": 1} | {names[id]: n for id, n in zip(names, (3, 4, 5, 7, 8, 1))}
    assert_same(
        tmp_path / "out",
        {name: vocoder.decode(Units((n,) if name != "mark" else (1, 2), None, CODEBOOK)) for name, n in ids.items()},
    )
    rows = [json.loads(line) for line in (tmp_path / "out" / "refused.jsonl").read_text().split("\n")[:-1]]
    assert [(row["id"], row["reason"]) for row in rows if row.get("id")] == [
        ("9", VocodeReason.OUT_OF_RANGE.value),
        ("00011", VocodeReason.NOT_UTF8.value),
        ("00013", VocodeReason.NOT_UNITS.value),
    ]
    assert [row["reason"] for row in rows if not row.get("id")] == [VocodeReason.OUTSIDE_FOLDER.value]
    assert "bad" in rows[1]["detail"] and "line 11" in rows[1]["detail"]


def test_without_durations_each_id_is_a_frame_and_speakers_have_names(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "units.txt").write_text(TEXT)
    vocoder = UnitVocoder.from_pretrained(folder)
    for speaker in ("cleo", "2"):
        out = tmp_path / speaker
        vocode(tmp_path / "units.txt", out, folder, "--no-durations", "--speaker", speaker)
        expected = {name: vocoder.decode(Units.from_frames(ids, CODEBOOK), speaker=2) for name, ids in IDS.items()}
        assert_same(out, expected)
        assert len(expected["a"]) == 4 * 320


def test_a_unit_set_keeps_its_durations(folder: Path, tmp_path: Path) -> None:
    all_units = {"x": Units((1, 2, 3), (4, 1, 2), CODEBOOK), "y/z": Units((5,), (30,), CODEBOOK)}
    records = [UnitRecord(name, units, 0) for name, units in all_units.items()]
    source = write_unit_set(tmp_path / "set", [*records, UnitRecord("none", Units((), (), CODEBOOK), 0)])
    with pytest.raises(SystemExit) as ended:
        vocode(source, tmp_path / "out", folder)
    assert ended.value.code == SOME_REFUSED
    vocoder = UnitVocoder.from_pretrained(folder)
    assert_same(tmp_path / "out", {name: vocoder.decode(units) for name, units in all_units.items()})
    row = json.loads((tmp_path / "out" / "refused.jsonl").read_text())
    assert (row["id"], row["reason"]) == ("none", VocodeReason.NO_UNITS.value)


def test_a_published_vocoder_vocodes_a_unit_set(tmp_path: Path) -> None:
    vocoder = loud_vocoder(HIFIGAN)
    weights = write_weights(tmp_path / "g_00500000", vocoder.network)
    (tmp_path / "km.json").write_text(json.dumps(config_of(HIFIGAN, CODEBOOK.size)))
    units = Units((1, 2, 3), (4, 1, 2), CODEBOOK)
    source = write_unit_set(tmp_path / "set", [UnitRecord("x", units, 0)])
    vocode(source, tmp_path / "out", weights, "--vocoder-config", tmp_path / "km.json")
    assert_same(tmp_path / "out", {"x": vocoder.decode(units)})


def test_bfloat16_is_an_option(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "units.txt").write_text(TEXT)
    vocode(tmp_path / "units.txt", tmp_path / "out", folder, "--dtype", "bfloat16")
    vocoder = UnitVocoder.from_pretrained(folder, precision=torch.bfloat16)
    exact = UnitVocoder.from_pretrained(folder)
    for name, ids in IDS.items():
        found, units = spoken(tmp_path / "out")[name], Units(ids, None, CODEBOOK)
        assert np.abs(found - vocoder.decode(units)).max() < 1e-4
        assert np.abs(found - exact.decode(units)).max() > 1e-4  # otherwise the option would have no effect
    with pytest.raises(SystemExit):  # the folder was begun in another precision
        vocode(tmp_path / "units.txt", tmp_path / "out", folder)
    assert "dtype" in capsys.readouterr().err
    UnitVocoder(CODEBOOK).save_pretrained(tmp_path / "mel")
    with refused(VocoderReason.UNSUPPORTED, '"mel"', "float32", "bfloat16", error=VocoderError):
        UnitVocoder.from_pretrained(tmp_path / "mel", precision=torch.bfloat16)


def test_a_second_run_writes_only_the_missing_wavs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "units.txt").write_text(TEXT)
    written: list[Path] = []

    def killed_after_two(path: Path, wav: np.ndarray) -> Path:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        return save_wav(path, wav)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr("units.vocoder.vocode.save_wav", killed_after_two)
        vocode(tmp_path / "units.txt", tmp_path / "out", folder)
    assert ended.value.code == INTERRUPTED
    times = {path: path.stat().st_mtime_ns for path in written}
    capsys.readouterr()
    vocode(tmp_path / "units.txt", tmp_path / "out", folder)
    assert "2 wavs" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in written} == times
    assert spoken(tmp_path / "out").keys() == IDS.keys()


@pytest.mark.parametrize(
    "change, message",
    [
        (["--speaker", "dora"], "no speaker 'dora'"),
        (["--speaker", "3"], "has 0 to 2"),
        (["--speaker", "1"], "other speaker"),
        (["--no-durations"], "other durations"),
        (["--vocoder", "nowhere"], "no config.json in nowhere"),
        (["--dtype", "float16"], "float16"),
        (["--vocoder-config"], "vocoder_config"),
    ],
)
def test_a_users_error_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    (tmp_path / "units.txt").write_text("1 2\n")
    vocode(tmp_path / "units.txt", tmp_path / "out", folder)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        vocode(tmp_path / "units.txt", tmp_path / "out", folder, *change)
    assert ended.value.code == WRONG_CALL
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("units-vocode: "))
    assert message in line


def test_sources_that_cannot_be_vocoded_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = Codebook("other", "mfcc", 0, 12, 50.0, "utterance", "ffff0000")
    source = write_unit_set(tmp_path / "set", [UnitRecord("x", Units((1,), (4,), foreign), 0)], foreign)
    own = write_unit_set(tmp_path / "own", [UnitRecord("x", Units((1,), (4,), CODEBOOK), 0)])
    cases = (
        ([source], "'other'"),
        ([tmp_path / "no.txt"], "no.txt"),
        ([own, "--no-durations"], "--no-durations is for text files"),
    )
    for (path, *options), message in cases:
        with pytest.raises(SystemExit) as ended:
            vocode(path, tmp_path / "out", folder, *options)
        assert ended.value.code == WRONG_CALL
        assert message in capsys.readouterr().err


def test_a_vocoder_of_release_0_1_0_vocodes_its_unit_set(tmp_path: Path) -> None:
    run = DATA / "release_0_1_0" / "run"
    vocode(run / "units" / "train", tmp_path / "out", run / "model" / "vocoder")
    lengths = {record.id: sum(record.units.durations or ()) * 320 for record in read_unit_set(run / "units" / "train")}
    assert {name: len(wav) for name, wav in spoken(tmp_path / "out").items()} == lengths


def test_a_run_that_0_1_0_began_is_finished(tmp_path: Path) -> None:
    """The plan is as release 0.1.0 wrote it for this vocoder."""
    vocoder = DATA / "release_0_1_0" / "run" / "model" / "vocoder"
    (tmp_path / "units.txt").write_text("a|1 2 3\nb|4 5\n")
    plan = {"source": "9dbfa61a0eaf857a", "vocoder": "702397d1fabf81e0", "speaker": 0, "durations": True}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "vocode.json").write_text(json.dumps({**plan, "dtype": "float32"}))
    vocode(tmp_path / "units.txt", tmp_path / "out", vocoder)
    assert set(spoken(tmp_path / "out")) == {"a", "b"}
    (tmp_path / "out" / "vocode.json").write_text(json.dumps({**plan, "vocoder": "0" * 16, "dtype": "float32"}))
    with pytest.raises(SystemExit) as ended:
        vocode(tmp_path / "units.txt", tmp_path / "out", vocoder)
    assert ended.value.code == WRONG_CALL


def test_lines_of_stdin_become_one_wav_or_a_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def typed(text: str, *options: object) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        main.cli(["-", *map(str, options), "--vocoder", str(folder)])

    typed("<sosp><1><2><7><eosp>\n", tmp_path / "a.wav")
    (wav,) = spoken(tmp_path).values()
    codebook = UnitVocoder.from_pretrained(folder).codebook
    whole = UnitVocoder.from_pretrained(folder).decode(Units((1, 2, 7), None, codebook))
    np.testing.assert_allclose(wav, whole, atol=1e-4)
    typed("x|1 2\ny|3\n", tmp_path / "many")
    assert set(spoken(tmp_path / "many")) == {"x", "y"}
    for text, message in (("1\n2\n", "2 utterances"), ("", "no units in stdin"), ("word", "'word' are not units")):
        with pytest.raises(SystemExit) as ended:
            typed(text, tmp_path / "b.wav")
        assert ended.value.code == WRONG_CALL and message in capsys.readouterr().err
    assert not (tmp_path / "b.wav").exists()
