"""results.json: read as written, refused if it is anything else."""

from __future__ import annotations

import dataclasses
import json

import pytest

from eval.metrics import Score
from eval.results import Result, ResultError, fingerprint, load_result, machine, save_result


def made_result(**changes) -> Result:
    result = Result(
        task="asr", version=1, metric="wer", higher_is_better=False, listener="the model", model="m 1", commit="c0ffee",
        codebook="made abc", corpus="toy 1", machine="abacus, 2 cores", device="cpu", limit=None, n=40, score=0.125, standard_error=0.02,
        more={"exact": Score(0.5, 0.05, 40), "family/sum": Score(None, None, 0)},
    )  # fmt: skip
    return dataclasses.replace(result, **changes)


def test_results_are_read_as_written(tmp_path):
    assert load_result(save_result(tmp_path / "asr.json", made_result())) == made_result()
    assert [path.name for path in tmp_path.iterdir()] == ["asr.json"]


def test_results_from_before_corpus_and_device_are_read(tmp_path):
    path = save_result(tmp_path / "asr.json", made_result())
    record = json.loads(path.read_text())
    path.write_text(json.dumps({name: record[name] for name in record if name not in ("corpus", "device")}))
    assert load_result(path) == made_result(corpus="unknown", device="unknown")


def test_the_machine_of_a_gpu_names_it(monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"Made GPU of {device}")
    assert machine("cuda:1") == f"{machine()}, Made GPU of cuda:1" and "GPU" not in machine()


WRONG = ({"color": "red"}, {"n": None}, {"n": True}, {"score": "0.1"}, {"more": {"exact": {}}})


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


def test_fingerprint_follows_the_weights(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    first = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert fingerprint(tmp_path) != first
    with pytest.raises(FileNotFoundError):
        fingerprint(tmp_path / "nothing")
