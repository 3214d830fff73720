"""What the report says: what to know before believing it, whatever people said, whatever was interrupted."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
from made_results import made_result

from eval.metrics import Score
from eval.report import plots
from eval.report.page import Exchange, _exchange_row, _pipes, _same
from eval.report.tables import notes
from units.codebook import Codebook
from units.runtime.provenance import fingerprint

CODEBOOK = Codebook("made", "mfcc", 0, 10, 50.0, "none", "abc")


def test_the_report_says_what_was_chosen_and_what_was_read(tmp_path):
    corpus = tmp_path / "corpus" / "corpus.json"
    corpus.parent.mkdir()
    world = {"answer_voice": "a", "new_voice": "b", "seed": 0}
    corpus.write_text(json.dumps(world))
    (tmp_path / "unit_encoder").mkdir()
    ears = tmp_path / "unit_encoder" / "codebook.json"
    ears.write_text(dataclasses.replace(CODEBOOK, encoder="starter").to_json())
    read = {"read": Score(1.0, 0.0, 107), "unread": Score(1.0, 0.0, 50)}
    results = {"text_qa": made_result(task="text_qa", more=read)}
    told = " ".join(notes(tmp_path, results))
    assert "One choice was made by it" in told and "107 of the 157" in told and "mostly recall" in told
    assert "has heard" not in told
    corpus.write_text(json.dumps({**world, "seed": 2}))
    assert "has heard most of this world's test questions" in " ".join(notes(tmp_path, results))
    ears.write_text(CODEBOOK.to_json())
    assert "has heard" not in " ".join(notes(tmp_path, results))
    corpus.unlink()
    assert "is not known here" in notes(tmp_path, results)[-1]


def test_the_report_warns_of_results_that_do_not_belong_together(tmp_path):
    voice = tmp_path / "model" / "vocoder"
    voice.mkdir(parents=True)
    (voice / "model.safetensors").write_bytes(b"new")
    gate = made_result(task="resynthesis", model="vocoder 123", corpus="unseen 4")
    assert "another vocoder" in notes(tmp_path, {"resynthesis": gate})[0]
    gate = dataclasses.replace(gate, model=f"vocoder {fingerprint(voice)}")
    assert "another vocoder" not in " ".join(notes(tmp_path, {"resynthesis": gate}))
    both = {"asr": made_result(), "tts": made_result(task="tts", device="cuda", corpus="toy 2"), "resynthesis": gate}
    assert "more than one corpus and device" in notes(tmp_path, both)[0]


def test_the_report_takes_any_text(tmp_path):
    exchange = Exchange("a|b", "what is ${x_}$", "Yes.", "what\nis", "yes", "YES", None, None)
    assert _exchange_row(exchange, tmp_path)[0] == "a|b"
    (row,) = _pipes(["h"] * 7, [_exchange_row(exchange, tmp_path)])[2:]
    assert row.startswith("| a\\|b | what is ${x_}$ | what is | yes |")
    assert "class=ok" in _same("yes", "Yes.") and "class=bad" in _same("no", "yes")
    assert "class=bad" in _same(None, "yes") and _same("yes", "") == "yes"  # no right answer is known
    wav = np.sin(np.arange(4000) / 9).astype(np.float32)
    assert plots.draw_exchange(wav, wav, ("${x_}$", "$5"), tmp_path / "p.png").exists()
    log = tmp_path / "stage1" / "log.jsonl"
    log.parent.mkdir()
    log.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert plots.read_logs(tmp_path) == {"stage1": [{"step": 1, "loss": 2.0}]}
