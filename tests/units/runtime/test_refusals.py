"""Refusals are counted by code and listed in one row format; rows of release 0.1.0 are read too."""

from __future__ import annotations

import gzip
import io
import json
import pickle
from pathlib import Path

import pytest

from units.audio import AudioError, AudioNotFoundError, AudioReason
from units.runtime.refusals import (
    LONGEST_DETAIL,
    CommonReason,
    Refusal,
    Refusals,
    listed_refusals,
    numbered_lines,
    read_refusals,
)


def test_refusals_are_counted_and_listed_by_code() -> None:
    refusals = Refusals(file=(file := io.StringIO()), rows=[])
    refusals.add("q1", AudioReason.TOO_SHORT)
    refusals.add("q2", AudioError(AudioReason.NOT_FINITE, "q2.wav holds NaN"), audio=Path("q2.wav"))
    refusals.add(Path("m.jsonl:3"), AudioReason.TOO_SHORT, detail=7)
    assert refusals.counts == {"too_short": 2, "not_finite": 1}
    assert str(refusals) == "3 refused (2 too_short, 1 not_finite)"
    assert [json.loads(line) for line in file.getvalue().splitlines()] == [
        {"id": "q1", "reason": "too_short"},
        {"id": "q2", "reason": "not_finite", "detail": "q2.wav holds NaN", "audio": "q2.wav"},
        {"id": "m.jsonl:3", "reason": "too_short", "detail": "7"},
    ]
    assert refusals.rows == [
        Refusal("q1", AudioReason.TOO_SHORT),
        Refusal("q2", AudioReason.NOT_FINITE, "q2.wav holds NaN", "q2.wav"),
        Refusal("m.jsonl:3", AudioReason.TOO_SHORT, "7"),
    ]
    assert str(Refusals()) == "0 refused"


def test_a_row_is_one_line_of_ascii() -> None:
    refusals = Refusals(rows=[])
    refusals.add("caf\udce9", AudioReason.UNREADABLE, "line one\nline two " + "x" * 1000)
    (row,) = refusals.rows
    assert row.line().isascii() and row.line().count("\n") == 1
    assert json.loads(row.line())["id"] == "caf\udce9" and len(row.detail) == LONGEST_DETAIL


@pytest.mark.parametrize("kind", [AudioError, AudioNotFoundError])
def test_an_error_keeps_its_reason_between_processes(kind: type[AudioError]) -> None:
    error = pickle.loads(pickle.dumps(kind(AudioReason.NOT_FOUND, "no audio file at a.wav")))  # noqa: S301
    assert type(error) is kind and error.reason is AudioReason.NOT_FOUND and str(error) == "no audio file at a.wav"
    assert isinstance(error, ValueError)
    assert isinstance(error, FileNotFoundError) == (kind is AudioNotFoundError)


def test_a_list_without_refusals_is_not_there(tmp_path: Path) -> None:
    with listed_refusals(tmp_path / "none.jsonl"):
        pass
    with listed_refusals(tmp_path / "one.jsonl") as refusals:
        refusals.add("a", CommonReason.OTHER)
    assert [path.name for path in tmp_path.iterdir()] == ["one.jsonl"]


def test_rows_of_every_release_are_read() -> None:
    rows = [
        {
            "id": "a",
            "audio": "a.wav",
            "reason": "a.wav is 0.010 s long; at least 0.025 s are needed",
        },  # 0.1.0, extraction
        {"where": "pairs.jsonl:2", "reason": "a number: 12"},  # 0.1.0, data building
        {"id": "b", "reason": "too_short", "detail": "b.wav is 0.010 s long", "audio": "b.wav"},
        {"id": "c", "reason": "same_id"},
    ]
    assert list(read_refusals(rows)) == [
        ("a", "other", "a.wav is 0.010 s long; at least 0.025 s are needed"),
        ("pairs.jsonl:2", "other", "a number: 12"),
        ("b", "too_short", "b.wav is 0.010 s long"),
        ("c", "same_id", ""),
    ]


def test_a_damaged_gzip_ends_with_a_refusal(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(b"%d\n" % i for i in range(10_000)))
    (tmp_path / "cut.gz").write_bytes(whole[: len(whole) // 2])
    refusals = Refusals(rows=[])
    lines = list(numbered_lines(tmp_path / "cut.gz", refusals))
    assert lines[:2] == [(1, b"0\n"), (2, b"1\n")]
    assert [(row.id, row.reason) for row in refusals.rows] == [
        (f"{tmp_path / 'cut.gz'}:{len(lines) + 1}", CommonReason.DAMAGED)
    ]
    (tmp_path / "plain.txt").write_bytes(b"a\nb")
    assert list(numbered_lines(tmp_path / "plain.txt", Refusals())) == [(1, b"a\n"), (2, b"b")]
