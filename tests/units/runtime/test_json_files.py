"""JSON files of users: what is read, and the one line that a file which is something else gets."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from units.runtime.files.json_files import FileError, FileReason, json_lines, read_json, read_text, text_lines

ROWS = [{"q": "eins\u2028zwei"}, {"q": "\x85"}, {"q": "ü", "n": 1.5}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


@pytest.mark.parametrize(
    "content",
    [LINES, b"\xef\xbb\xbf" + LINES, LINES.replace(b"\n", b"\r\n"), LINES.replace(b"\n", b"\n\n \n"), LINES[:-1]],
    ids=["plain", "byte order mark", "CRLF", "blank lines", "no last line feed"],
)
def test_lines_are_read_however_they_were_saved(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content))
    for name in ("a.jsonl", "a.jsonl.gz"):
        assert [row for _, row in json_lines(tmp_path / name, {"q": str})] == ROWS


BAD_LINES = {
    "not UTF-8": (b'{"q": "caf\xe9"}', FileReason.NOT_UTF8),
    "cut": (b'{"q": "a', FileReason.NOT_JSON),
    "a list": (b'["q"]', FileReason.NOT_JSON),
    "a number with too many digits": (b'{"q": ' + b"9" * 9999 + b"}", FileReason.NOT_JSON),
    "too deep": (b'{"q": ' + b"[" * 99999, FileReason.NOT_JSON),
    "another field": (b'{"p": "a"}', FileReason.MISSING_FIELD),
    "another type": (b'{"q": 1}', FileReason.INVALID_FIELD),
    "null": (b'{"q": null}', FileReason.INVALID_FIELD),
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_is_named(tmp_path: Path, kind: str) -> None:
    line, reason = BAD_LINES[kind]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"q": "a"}\n\n' + line + b"\n")
    with pytest.raises(FileError) as error:
        list(json_lines(path, {"q": str}))
    assert error.value.reason == reason and str(error.value).startswith(f"{path}:3: ")
    path.write_bytes(line)
    with pytest.raises(FileError) as error:
        read_json(path, {"q": str})
    assert error.value.reason == reason and str(error.value).startswith(f"{path}: ")


def test_lines_of_text_keep_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\n\n \n two\u2028too \nthree".encode())
    assert text_lines(tmp_path / "a.txt") == [(1, "one"), (4, "two\u2028too"), (5, "three")]
    (tmp_path / "a.txt").write_bytes(b"")
    assert text_lines(tmp_path / "a.txt") == []


def test_true_is_no_number(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"n": true}')
    with pytest.raises(FileError, match="n is True"):
        read_json(tmp_path / "a.json", {"n": int})
    assert read_json(tmp_path / "a.json", {"n": bool}) == {"n": True}


def test_a_compressed_file_that_is_cut_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES)[:-9])
    with pytest.raises(FileError) as error:
        list(json_lines(tmp_path / "a.jsonl.gz"))
    assert error.value.reason == FileReason.DAMAGED and "a.jsonl.gz" in str(error.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused_by_name(tmp_path: Path, content: bytes) -> None:
    for path in (tmp_path / "a.json", tmp_path / "a.json.gz"):
        path.write_bytes(content)
        for read in (read_json, read_text, lambda path: list(json_lines(path))):
            try:
                read(path)
            except FileError as error:
                assert str(error).startswith(str(path))
