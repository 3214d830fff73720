"""results.json: read as written, refused if it is anything else."""

from __future__ import annotations

import json

import pytest
from made_results import made_result

from eval.results import ResultError, load_result, save_result
from units.runtime.provenance import fingerprint, machine


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
