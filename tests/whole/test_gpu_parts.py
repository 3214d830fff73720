"""bench/gpu.py: a part that fails or hangs stops no other, a part that is done is not run again, results are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import bench.gpu as gpu
from bench.gpu import PARTS, GpuPart


def part(name: str, program: str, seconds: float = 30.0) -> GpuPart:
    return GpuPart(name, ("-c", "raise SystemExit('not the tiny size')"), ("-c", program), seconds)


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_parts_that_fail_or_hang_stop_no_other_and_done_ones_are_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    marker, out = tmp_path / "works", tmp_path / "out"
    parts = (
        part("fails", f"import pathlib, sys; sys.exit(0 if pathlib.Path({str(marker)!r}).exists() else 'no luck')"),
        part("hangs", "import time; time.sleep(60)", seconds=1.0),
        part("figures", "print('1,234 tokens a second')"),
    )
    monkeypatch.setattr(gpu, "PARTS", parts)
    with pytest.raises(SystemExit, match="failed: fails, hangs"):
        gpu.main(out, tiny=True)
    assert [(row["part"], row["exit_code"]) for row in rows(out)] == [("fails", 1), ("hangs", 124), ("figures", 0)]
    assert "1,234 tokens a second" in (out / "figures.log").read_text()
    assert "no luck" in capsys.readouterr().out
    marker.touch()
    gpu.main(out, tiny=True, only=["fails", "figures"])
    assert [(row["part"], row["exit_code"]) for row in rows(out)[3:]] == [("fails", 0)]
    assert "figures: done already" in capsys.readouterr().out


def test_wrong_calls_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="minutes is 0.0; allowed: above 0"):
        gpu.main(tmp_path / "out", minutes=0.0)
    with pytest.raises(ValueError, match="'brain' is no part|brain is no part; allowed: tests, "):
        gpu.main(tmp_path / "out", only=["brain"])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("one", PARTS, ids=[one.name for one in PARTS])
def test_every_part_runs_at_tiny_size(one: GpuPart, tmp_path: Path) -> None:
    result = gpu.run(one, tmp_path, tiny=True, seconds=300)
    assert result["exit_code"] == 0, (tmp_path / f"{one.name}.log").read_text()
