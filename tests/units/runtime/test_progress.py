"""Progress is a bar on a terminal and plain lines elsewhere."""

from __future__ import annotations

import pytest

from units.runtime.progress import progress


def test_elsewhere_than_on_a_terminal_progress_is_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(3), desc="reading", unit="files")) == [0, 1, 2]
    error = capsys.readouterr().err
    assert "\r" not in error
    assert error.splitlines()[-1].startswith("reading: 3 of 3 files")


def test_progress_can_be_counted_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(desc="resuming", unit="shards", total=5, initial=2) as bar:
        bar.update(3)
    assert "5 of 5 shards" in capsys.readouterr().err


def test_on_a_terminal_it_is_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    list(progress(range(3), desc="reading", unit="files"))
    assert "\rreading: 100%" in capsys.readouterr().err
