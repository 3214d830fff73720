"""units-export: what other programs would read back is what the unit set holds."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import DATA
from tiny_set import record_of, write_set

from units import notation
from units.codebook import expand, reduce
from units.dataset import export as export_module
from units.dataset.export import FORMATS, export, spelled_line
from units.dataset.unit_set import COMPLETION_FILE

K = 600
RELEASED = DATA / "stage1_released.txt"


def write_frames(folder: Path, frames: dict[str, list[int]]) -> Path:
    return write_set(folder, [record_of(name, units, K) for name, units in frames.items()], K)


frames_by_id = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"], exclude_characters="|"), min_size=1),
    st.lists(st.integers(0, K - 1), min_size=1, max_size=20),
    max_size=6,
)


def write_and_read(tmp_path: Path, frames: dict[str, list[int]], format: str, rate=None) -> list[str]:
    out = tmp_path / "out.txt"
    assert export(write_frames(tmp_path / "set", frames), out, format, rate) == len(frames)
    ids = out.with_name("out.txt.ids")
    if not FORMATS[format].holds_id:
        assert ids.read_text(encoding="utf-8").split("\n")[:-1] == list(frames)
    return out.read_text(encoding="utf-8").split("\n")[:-1]


repeated = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


@repeated
@given(frames=frames_by_id)
def test_lines_are_read_back(frames: dict[str, list[int]], tmp_path: Path) -> None:
    for rate in ("full", "reduced", None):
        lines = [line.split("|") for line in write_and_read(tmp_path, frames, "lines", rate)]
        found = {name: [int(unit) for unit in units.split(" ")] for name, units in lines}
        assert found == (
            frames if rate != "reduced" else {name: list(reduce(units)[0]) for name, units in frames.items()}
        )
        assert [name for name, _ in lines] == list(frames)


@repeated
@given(frames=frames_by_id)
def test_km_lines_are_read_back(frames: dict[str, list[int]], tmp_path: Path) -> None:
    lines = write_and_read(tmp_path, frames, "km")
    assert [[int(unit) for unit in line.split()] for line in lines] == list(frames.values())


@repeated
@given(frames=frames_by_id)
def test_spelled_lines_are_read_back(frames: dict[str, list[int]], tmp_path: Path) -> None:
    reduced = write_and_read(tmp_path, frames, "spelled")
    assert [notation.read(line, K) for line in reduced] == [list(reduce(units)[0]) for units in frames.values()]
    full = write_and_read(tmp_path, frames, "spelled", "full")
    assert [notation.read(line, K) for line in full] == list(frames.values())


@repeated
@given(frames=frames_by_id)
def test_slamkit_records_are_read_back(frames: dict[str, list[int]], tmp_path: Path) -> None:
    records = [json.loads(line) for line in write_and_read(tmp_path, frames, "slamkit")]
    assert all(list(record) == ["units", "duration", "file_name"] for record in records)
    assert [record["file_name"] for record in records] == list(frames)
    for record, units in zip(records, frames.values()):
        assert (tuple(record["units"]), tuple(record["duration"])) == reduce(units)


def test_the_lines_as_they_look(tmp_path: Path) -> None:
    frames = {"sub/q1": [12, 12, 12, 7]}
    looks = {
        "lines": "sub/q1|12 12 12 7",
        "km": "12 12 12 7",
        "spelled": "<sosp><12><7><eosp>",
        "slamkit": '{"units": [12, 7], "duration": [3, 1], "file_name": "sub/q1"}',
    }
    assert {name: write_and_read(tmp_path, frames, name)[0] for name in FORMATS} == looks


def test_spelled_lines_are_those_that_speechgpt_released() -> None:
    lines = RELEASED.read_text(encoding="utf-8").splitlines()
    for line in lines:
        ids = notation.read(line, 1000)
        record = record_of("a", expand(ids, [2] * len(ids)), 1000)
        assert FORMATS["spelled"].rates[0] == "reduced"  # which is how they were released: no unit follows itself
        assert spelled_line(record, record.units.ids) == line
    assert len(lines) == 3


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    unit_set = write_frames(tmp_path / "set", {"a": [1], "b|c": [2]})
    out = tmp_path / "out.txt"
    with pytest.raises(ValueError, match=r"'b\|c' has a \| or a line break"):
        export(unit_set, out)
    for format, rate, message in (("hdf5", None, "known are lines"), ("km", "reduced", "full units only")):
        with pytest.raises(ValueError, match=message):
            export(unit_set, out, format, rate)
    (unit_set / COMPLETION_FILE).unlink()
    with pytest.raises(FileNotFoundError, match="not a complete unit set"):
        export(unit_set, out, "km")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_an_id_of_two_lines_is_not_written(tmp_path: Path) -> None:
    for id, format in itertools.product(("a\nb", "a\rb", "a\u2028b", "a\x85b"), ("lines", "km", "spelled")):
        odd = write_frames(tmp_path / f"odd {format} {ord(id[1])}", {id: [1]})
        with pytest.raises(ValueError, match="line break"):
            export(odd, tmp_path / "odd.txt", format)
        assert not (tmp_path / "odd.txt").exists() and not (tmp_path / "odd.txt.ids").exists()


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    unit_set = write_frames(tmp_path / "set", {"a": [1, 1], "b": [2]})
    monkeypatch.setattr(sys, "argv", ["units-export", str(unit_set), str(tmp_path / "train.km"), "--format", "km"])
    export_module.main.cli()
    assert "2 utterances of tiny-km600 -> " in capsys.readouterr().out
    assert (tmp_path / "train.km").read_text() == "1 1\n2\n"
    monkeypatch.setattr(sys, "argv", ["units-export", str(tmp_path), str(tmp_path / "train.km")])
    with pytest.raises(SystemExit) as stopped:
        export_module.main.cli()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("units-export: ")
