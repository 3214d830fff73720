"""The comparison: its columns and rows, any text in them, and runs that cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_results import made_result

from eval import compare as command
from eval.metrics import Score
from eval.report.compare_page import comparison_html, comparison_markdown
from eval.report.comparison import PUBLISHED, ComparisonError, as_record, compare, read_published
from eval.report.tables import FIGURES
from eval.results import Result, save_result
from units.runtime.files.json_files import FileError

CASCADE = "cascade whisper tiny (38 M, en), smollm abc up to 64 tokens, flite:slt"
TOPLINE = "cascade the true transcripts, smollm abc up to 64 tokens"


def run_folder(folder: Path, *results: Result) -> Path:
    for result in results:
        save_result(folder / f"{result.task}.json", result)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    wuggy = {"sum": Score(0.55, 0.02, 100), "frequency/oov": Score(0.5, 0.1, 9)}
    originals = made_result(task="originals", score=0.01, listener="whisper")
    pairs = made_result(task="swuggy", metric="accuracy", higher_is_better=True, score=0.6, more=wuggy, listener="-")
    run_folder(tmp_path / "topline", made_result(model=TOPLINE, score=0.0))
    run_folder(tmp_path / "cascade", made_result(model=CASCADE, score=0.1))
    run_folder(tmp_path / "ours" / "results", made_result(model="ours 1"), originals, pairs)
    return [f"text={tmp_path / 'topline'}", str(tmp_path / "cascade"), str(tmp_path / "ours")]


def test_models_stand_before_cascades_and_toplines(runs: list[str]) -> None:
    found = compare(runs)
    assert [(c.title, c.kind) for c in found.columns] == [
        ("ours", "model"),
        ("cascade", "cascade"),
        ("text", "topline"),
    ]
    rows = {row.figure.name: row for row in found.rows}
    assert list(rows) == ["asr_wer", "swuggy", "swuggy_sum", "swuggy_oov"]
    assert rows["asr_wer"].cells() == ["12.5 ± 2.0 % (40)", "10.0 ± 2.0 % (40)", "0.0 ± 2.0 % (40)"]
    assert rows["asr_wer"].floor_cell == "1.0 ± 2.0 %" and not rows["asr_wer"].mixed and rows["asr_wer"].better == "↓"
    assert rows["swuggy"].cells() == ["60.0 ± 2.0 % (40)", "", ""] and rows["swuggy"].floor_cell == ""
    assert any("72.7 %" in cell and "SpidR" in cell for cell in rows["swuggy"].published_cells())
    assert compare(runs, published=None).rows[1].published == []


def test_every_figure_can_be_shown(runs: list[str]) -> None:
    names = [row.figure.name for row in compare(runs, every=True).rows]
    assert {"asr/exact", "originals/wer", "asr/family/sum"} <= set(names) and names.index("asr_wer") < names.index(
        "swuggy"
    )
    cells = {row.figure.name: row.cells() for row in compare(runs, every=True).rows}
    assert cells["asr/exact"][0] == "0.500 ± 0.050 (40)" and cells["asr/family/sum"][0] == "undefined (0)"


@pytest.mark.parametrize(
    "change", [{"corpus": "other 2"}, {"limit": 10}, {"reply_tokens": 48}, {"listener": "another"}]
)
def test_rows_of_different_test_sets_are_marked(runs: list[str], tmp_path: Path, change: dict) -> None:
    run_folder(tmp_path / "cascade", made_result(model=CASCADE, **change))
    found = compare(runs)
    assert found.rows[0].mixed and found.notes[0].startswith("Rows with †") and not found.rows[1].mixed
    assert "asr_wer` ↓ †" in comparison_markdown(found, "t") and "&dagger;" in comparison_html(found, "t")


def test_the_pages_hold_the_same_figures_and_escape_all(runs: list[str], tmp_path: Path) -> None:
    run_folder(tmp_path / "ours" / "results", made_result(model="<b>|bad"))
    command.main(runs, tmp_path / "out", title="<i>Mine</i>")
    page, text = ((tmp_path / "out" / name).read_text() for name in ("compare.html", "compare.md"))
    assert "<b>" not in page and "<i>" not in page and "&lt;b&gt;|bad" in page
    for cell in ("12.5 ± 2.0 % (40)", "10.0 ± 2.0 % (40)", "55.0 ± 2.0 % (100)", "1.0 ± 2.0 %"):
        assert cell in page and cell in text
    record = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert record == as_record(compare(runs))
    assert record["rows"][0]["scores"][1] == {"value": 0.1, "standard_error": 0.02, "n": 40}
    assert record["rows"][0]["floor"]["value"] == 0.01 and record["rows"][1]["published"][0]["source"]


def test_the_command_takes_any_number_of_runs(runs: list[str], tmp_path: Path) -> None:
    command.main.cli([*runs, "--out", str(tmp_path / "out"), "--every"])
    record = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [column["title"] for column in record["columns"]] == ["ours", "cascade", "text"] and len(record["rows"]) > 5
    command.main.cli([runs[0], f"--out={tmp_path / 'one'}"])
    with pytest.raises(SystemExit):
        command.main.cli(["--out", str(tmp_path / "none")])


def test_runs_that_cannot_be_compared_are_named(runs: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ComparisonError, match="empty has no results"):
        compare([str(tmp_path / "empty")])
    with pytest.raises(ComparisonError, match="two columns are called ours"):
        compare([runs[2], runs[2]])


def test_results_of_one_model_in_several_folders_are_joined(runs: list[str], tmp_path: Path) -> None:
    run_folder(tmp_path / "more", made_result(model="ours 1", task="sblimp"))
    found = compare([f"{tmp_path / 'ours'},{tmp_path / 'more'}"])
    assert [c.title for c in found.columns] == ["ours"] and {"asr_wer", "sblimp"} <= {r.figure.name for r in found.rows}
    with pytest.raises(ComparisonError, match="more than one folder has results of asr"):
        compare([f"x={tmp_path / 'ours'},{tmp_path / 'cascade'}"])


def test_published_figures_are_of_rows_that_exist(tmp_path: Path) -> None:
    published = read_published(PUBLISHED)
    assert {one.figure for one in published} <= {figure.name for _, figure in FIGURES}
    assert all(one.source and one.model for one in published)
    for wrong in (
        "{}",
        '[{"figure": "swuggy", "model": "m", "value": "high", "source": "s"}]',
        '[{"figure": "swuggy"}]',
    ):
        (tmp_path / "p.json").write_text(wrong)
        with pytest.raises(FileError, match="p.json"):
            read_published(tmp_path / "p.json")
