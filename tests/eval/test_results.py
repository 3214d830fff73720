"""results.json: read as it was written, by this release and by 0.1.0; refused if it is anything else."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from made_results import made_result

from eval.report.tables import score_rows
from eval.results import ResultError, load_details, load_result, load_results, save_details, save_result
from units.runtime.files.json_files import FileError
from units.runtime.provenance import fingerprint, machine

DATA = Path(__file__).parents[1] / "data" / "results_0_1_0"


def test_results_are_read_as_written(tmp_path):
    assert load_result(save_result(tmp_path / "asr.json", made_result())) == made_result()
    assert [path.name for path in tmp_path.iterdir()] == ["asr.json"]


def test_results_without_corpus_and_device_are_read(tmp_path):
    path = save_result(tmp_path / "asr.json", made_result())
    record = json.loads(path.read_text())
    path.write_text(
        json.dumps({name: record[name] for name in record if name not in ("corpus", "device", "reply_tokens")})
    )
    assert load_result(path) == made_result(corpus="unknown", device="unknown")


def test_results_of_release_0_1_0_are_read():
    """tests/data/results_0_1_0 was written by release 0.1.0; a figure has another name since."""
    found = load_results(DATA)
    assert set(found) == {"answer_speech", "resynthesis"}
    spoken = found["answer_speech"]
    assert (spoken.version, spoken.metric, spoken.limit, spoken.n) == (2, "wer", None, 4)
    assert spoken.more["first_candidate"].value == 0.2 and "first_take" not in spoken.more
    assert spoken.listener == "pocketsphinx 5.1.1, sentence grammar"
    rows = {row.figure.name: row for row in score_rows(found)}
    assert (rows["first_candidate_wer"].value, rows["answer_wer"].n) == ("20.0 %", "4")
    assert rows["resynth_wer"].value == rows["resynth_wer"].beside_value == "4.8 %"


def test_the_machine_of_a_gpu_names_it(monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"Made GPU of {device}")
    assert machine("cuda:1") == f"{machine()}, Made GPU of cuda:1" and "GPU" not in machine()


WRONG = (
    *({"color": "red"}, {"n": None}, {"n": True}, {"score": "0.1"}, {"more": {"exact": {}}}, {"more": {"exact": 1}}),
    *({"score": math.nan}, {"standard_error": math.inf}, {"score": 10**400}, {"more": []}),
)


@pytest.mark.parametrize("change", WRONG)
def test_results_reader_is_strict(tmp_path, change):
    path = save_result(tmp_path / "asr.json", made_result())
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ResultError, match="asr.json"):
        load_result(path)


def test_nan_is_never_written(tmp_path):
    with pytest.raises(ValueError):
        save_result(tmp_path / "asr.json", made_result(score=float("nan")))
    assert not list(tmp_path.iterdir())


DETAILS = [
    {"id": "q1", "text": "one\u2028two\x85three\x0bfour", "gold": None},
    {"id": "\ud800", "rate": math.inf, "low": -math.inf, "units": [1, 2]},
    {"id": "", "text": "é\r\n"},
    {},
]


def test_details_are_read_as_written(tmp_path):
    assert load_details(save_details(tmp_path / "a.jsonl", DETAILS)) == DETAILS
    (nan,) = load_details(save_details(tmp_path / "nan.jsonl", [{"rate": math.nan}]))
    assert math.isnan(nan["rate"])
    assert load_details(tmp_path / "none.jsonl") == []


def test_details_of_release_0_1_0_are_read(tmp_path):
    """Release 0.1.0 wrote separators of lines as they are, but could not read them."""
    old = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in (DETAILS[0], DETAILS[2]))
    (tmp_path / "a.jsonl").write_text(old)
    assert load_details(tmp_path / "a.jsonl") == [DETAILS[0], DETAILS[2]]


@pytest.mark.parametrize("content", [b'{"id": "q1"}\n{"id": "q', b'{"id": "q1"}\n["q2"]', b'{"id": "q1"}\ncaf\xe9'])
def test_damaged_details_are_named(tmp_path, content):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(FileError, match="a.jsonl:2: "):
        load_details(tmp_path / "a.jsonl")


@pytest.mark.parametrize("content", [b"", b"{", b"caf\xe9", b"[1]", b"null", b"[" * 99999, b'{"n": ' + b"1" * 9999])
def test_a_file_that_is_no_result_is_named(tmp_path, content):
    (tmp_path / "asr.json").write_bytes(content)
    with pytest.raises(ResultError, match="asr.json"):
        load_result(tmp_path / "asr.json")


def test_fingerprint_depends_on_the_weights(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    first = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert fingerprint(tmp_path) != first
    with pytest.raises(FileNotFoundError):
        fingerprint(tmp_path / "nothing")
