"""The report: notes and warnings, any text in its cells, and runs that are empty or were interrupted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from made_results import made_result

from eval.metrics import Score
from eval.report import card, plots
from eval.report.content import Exchange, Report, gather, read_exchanges
from eval.report.markdown import exchange_cells, table
from eval.report.notes import (
    EVALUATION_ASR,
    OWN_TEST_SET,
    SHIPPED_ENCODER,
    STANDARD_ERRORS,
    TEST_SPLIT,
    notes,
    warnings,
)
from eval.report.page import html, verdict
from eval.report.tables import FIGURES, NOT_RUN, OPTIONAL, family_table, score_rows, show, summary_line
from eval.results import save_details
from units.codebook import Codebook
from units.runtime.provenance import fingerprint

CODEBOOK = Codebook("made", "mfcc", 0, 10, 50.0, "none", "abc")


def test_notes_of_a_generated_world(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus" / "corpus.json"
    corpus.parent.mkdir()
    facts = {"answer_voice": "voice-a", "new_voice": "voice-b", "seed": 0}
    corpus.write_text(json.dumps(facts))
    (tmp_path / "unit_encoder").mkdir()
    codebook = tmp_path / "unit_encoder" / "codebook.json"
    codebook.write_text(dataclasses.replace(CODEBOOK, encoder="starter").to_json())
    read = {"read": Score(1.0, 0.0, 107), "unread": Score(1.0, 0.0, 50)}
    results = {"text_qa": made_result(task="text_qa", more=read)}
    found = notes(tmp_path, results)
    assert found[:3] == [STANDARD_ERRORS, EVALUATION_ASR, TEST_SPLIT]
    assert any("107 of the 157" in note for note in found)
    assert "voice-a" in found[-1] and "voice-b" in found[-1]
    assert SHIPPED_ENCODER not in found
    assert "unit_noise" not in " ".join(found)
    corpus.write_text(json.dumps({**facts, "seed": 2}))
    assert SHIPPED_ENCODER in notes(tmp_path, results)
    codebook.write_text(CODEBOOK.to_json())
    assert SHIPPED_ENCODER not in notes(tmp_path, results)
    corpus.unlink()
    assert notes(tmp_path, results)[-1] == OWN_TEST_SET


def test_results_that_do_not_belong_together_are_warned_of(tmp_path: Path) -> None:
    vocoder = tmp_path / "model" / "vocoder"
    vocoder.mkdir(parents=True)
    (vocoder / "model.safetensors").write_bytes(b"new")
    gate = made_result(task="resynthesis", model="vocoder 123", corpus="unseen 4")
    (warning,) = warnings(tmp_path, {"resynthesis": gate})
    assert "another vocoder" in warning and notes(tmp_path, {"resynthesis": gate})[0] == warning
    gate = dataclasses.replace(gate, model=f"vocoder {fingerprint(vocoder)}")
    assert warnings(tmp_path, {"resynthesis": gate}) == []
    both = {"asr": made_result(), "tts": made_result(task="tts", device="cuda", corpus="toy 2"), "resynthesis": gate}
    (warning,) = warnings(tmp_path, both)
    assert "corpus and device" in warning
    (warning,) = warnings(tmp_path, {"asr": made_result(limit=10)})
    assert "10 examples" in warning


def test_any_text_fits_into_cells(tmp_path: Path) -> None:
    exchange = Exchange("a|b", "what is ${x_}$", "Yes.", "what\nis", "yes", "YES", None, None)
    assert exchange_cells(exchange, tmp_path)[0] == "a|b"
    (row,) = table(["h"] * 7, [exchange_cells(exchange, tmp_path)])[2:]
    assert row.startswith("| a\\|b | what is ${x_}$ | what is | yes |")
    assert verdict("yes", "Yes.") == "right" and verdict("no", "yes") == "wrong"
    assert verdict(None, "yes") == "wrong" and verdict("yes", "") == ""  # no right answer is known
    wav = np.sin(np.arange(4000) / 9).astype(np.float32)
    assert plots.draw_exchange(wav, wav, ("${x_}$", "$5"), tmp_path / "p.png").exists()


def test_half_a_line_of_a_log_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "stage1" / "log.jsonl"
    log.parent.mkdir()
    log.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert plots.read_logs(tmp_path) == {"stage1": [{"step": 1, "loss": 2.0}]}


def test_every_text_of_the_page_is_escaped(tmp_path: Path) -> None:
    bad = "<script>'\"&"
    exchange = Exchange(bad, bad, bad, bad, bad, bad, None, None)
    results = {"asr": made_result(more={f"family/{bad}": Score(0.5, None, 2)})}
    report = Report(
        bad, score_rows(results), family_table(results), [exchange], None, None, [bad], [("model", bad), (bad, bad)]
    )
    page = html(report)
    assert "<script>" not in page and page.count("&lt;script&gt;") >= 12
    assert page.count('class="wrong"') == 0 and page.count("no speech") == 2


def test_the_page_shows_every_figure(tmp_path: Path) -> None:
    results = {"asr": made_result(), "originals": made_result(task="originals", score=0.01)}
    page = html(gather(tmp_path, tmp_path, "mine", 2.5))
    assert {figure.name for _, figure in FIGURES if f"<code>{figure.name}</code>" in page} == {
        figure.name for task, figure in FIGURES if task not in OPTIONAL
    }
    rows = {row.figure.name: row for row in score_rows(results)}
    asr = rows["asr_wer"]
    assert (asr.value, asr.value_with_error, asr.error, asr.n) == ("12.5 %", "12.5 ± 2.0 %", "± 2.0 %", "40")
    assert (asr.beside_value, asr.better) == ("1.0 %", "lower")
    assert (rows["spoken_qa"].better, rows["unit_rate"].better) == ("higher", "")
    assert rows["tts_wer"].value == NOT_RUN and rows["tts_wer"].n == rows["tts_wer"].error == ""
    assert show(Score(None, None, 0)) == "undefined" and show(Score(0.5, 0.01, 9), "s", error=True) == "0.50 ± 0.01 s"


def test_an_optional_task_has_rows_where_it_was_measured() -> None:
    shown = [
        row.figure.name for row in score_rows({"swuggy": made_result(task="swuggy", more={"sum": Score(0.5, 0.1, 9)})})
    ]
    assert {"swuggy", "swuggy_sum"} <= set(shown) and not {"swuggy_oov", "sblimp"} & set(shown)


def test_the_summary_line_is_a_format() -> None:
    results = {"asr": made_result(), "spoken_qa": made_result(task="spoken_qa", score=None, standard_error=None)}
    assert summary_line(results, 23.44, "toy") == (
        "toy: asr_wer=0.125 spoken_qa=undefined answer_wer=not-run new_voice_wer=not-run text_qa=not-run "
        "resynth_wer=not-run minutes=23.4"
    )


def test_the_report_of_an_empty_run_has_no_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card.main(tmp_path / "run", tmp_path / "report")
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("run: ") and line.count("not-run") == 6 and line.endswith("minutes=unknown")
    assert (tmp_path / "report" / "REPORT.md").read_text().count(NOT_RUN) > 10


def test_kept_wavs_are_found_by_the_names_in_the_list_and_by_those_of_0_1_0(tmp_path: Path) -> None:
    texts = dict.fromkeys(("family", "question", "gold", "transcript", "text", "heard"), "")
    (tmp_path / "__.question.wav").write_bytes(b"")  # release 0.1.0 gave two names in Chinese one file
    (tmp_path / "你好.question.wav").write_bytes(b"")
    new = {"question_wav": "你好.question.wav", "answer_wav": None}
    save_details(tmp_path / "answers.jsonl", [{"id": "你好", **texts}, {"id": "你好", **texts, **new}])
    old, found = read_exchanges(tmp_path)
    assert old.question_wav == tmp_path / "__.question.wav" and old.answer_wav is None
    assert found.question_wav == tmp_path / "你好.question.wav" and found.answer_wav is None
