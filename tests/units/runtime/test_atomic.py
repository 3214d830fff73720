"""Files appear whole or not at all, and a run is resumed only with its own plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from units.runtime.files.atomic import check_begun, path_written_whole, written_whole


@pytest.mark.parametrize(("mode", "content"), [("w", "caf\u00e9\n"), ("wb", b"\0\xff")])
def test_a_file_appears_when_its_block_ends(tmp_path: Path, mode: str, content: str | bytes) -> None:
    path = tmp_path / "new" / "a.txt"
    with written_whole(path, mode) as file:
        file.write(content)
        assert not path.exists()
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), written_whole(path) as file:
        file.write("new")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_is_renamed_when_its_block_ends(tmp_path: Path) -> None:
    with path_written_whole(tmp_path / "a.txt") as part:
        part.write_text("new")
        assert part.parent == tmp_path and part.name != "a.txt"
    assert (tmp_path / "a.txt").read_text() == "new" and not part.exists()
    with pytest.raises(ValueError), path_written_whole(tmp_path / "b.txt") as part:
        part.write_text("half")
        raise ValueError
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_plan_of_an_earlier_release_may_have_another_form(tmp_path: Path) -> None:
    plan = tmp_path / "out" / "plan.json"
    check_begun(plan, {"weights": "old form of 1", "rows": 2})
    check_begun(plan, {"weights": "new form of 1", "rows": 2}, {"weights": lambda: "old form of 1"})
    with pytest.raises(ValueError, match="weights"):
        check_begun(plan, {"weights": "new form of 2", "rows": 2}, {"weights": lambda: "old form of 2"})
    with pytest.raises(ValueError, match="rows"):
        check_begun(plan, {"weights": "new form of 1", "rows": 3}, {"weights": lambda: "old form of 1"})


def test_a_run_is_resumed_only_with_its_plan(tmp_path: Path) -> None:
    plan = tmp_path / "out" / "plan.json"
    check_begun(plan, {"speaker": 1, "rows": [1, 2]})
    check_begun(plan, {"speaker": 1, "rows": [1, 2]})
    for changed, difference in (
        ({"speaker": 2, "rows": [1, 2]}, r"out .* speaker: {'speaker': 1}, .* {'speaker': 2}"),
        ({"speaker": 1, "rows": [1, 2], "dtype": "float32"}, "dtype: {'dtype': None}, .* {'dtype': 'float32'}"),
        ({"speaker": 1}, r"rows: {'rows': \[1, 2\]}, .* {'rows': None}"),
    ):
        with pytest.raises(ValueError, match=difference):
            check_begun(plan, changed)
