"""Compressed files are read and written like others, and the same content has the same bytes."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from units.runtime.files.gzipped import opened, opened_to_write


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    content = "caf\u00e9\n" * 100
    with opened_to_write(tmp_path / name) as file:
        file.write(content.encode())
    with opened(tmp_path / name) as file:
        assert file.read() == content
    with opened(tmp_path / name, "rb") as file:
        assert file.read() == content.encode()
    raw = (tmp_path / name).read_bytes()
    assert (gzip.decompress(raw) if name.endswith(".gz") else raw) == content.encode()


def test_the_same_content_has_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, now in (("a.gz", 1e9), ("b.gz", 2e9)):
        monkeypatch.setattr("time.time", lambda now=now: now)
        with opened_to_write(tmp_path / name) as file:
            file.write(b"same")
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


def test_an_error_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError), opened_to_write(tmp_path / "a.gz") as file:
        file.write(b"half")
        raise ValueError
    assert not list(tmp_path.iterdir())
