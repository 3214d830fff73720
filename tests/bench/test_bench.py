"""Every bench runs, at a size that measures nothing: what is tested is that none has fallen behind the code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_parts import tiny_hubert, tones

import bench.attention
import bench.instruct_data
import bench.memory
import bench.speed
import bench.train
import bench.units
import bench.vocoder
from units.audio import save_wav
from units.corpus.manifest import Utterance, write_manifest
from units.encoder.hubert import HubertFeatures
from units.encoder.unit_encoder import UnitEncoder

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 1024,
}
Printed = pytest.CaptureFixture[str]


def test_attention(capsys: Printed) -> None:
    bench.attention.main(block=32, batch=1, rounds=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["sdpa", "eager", "by_document"]


@pytest.mark.slow
def test_instruct_data(capsys: Printed, tmp_path: Path) -> None:
    bench.instruct_data.main([50], tmp_path / "rows.json")
    assert "describe" in capsys.readouterr().out
    assert all(row["mib"] > 10 and row["seconds"] > 0 for row in json.loads((tmp_path / "rows.json").read_text()))


def test_memory_is_not_the_parents() -> None:
    held = np.ones(300 * 2**20, np.uint8)  # getrusage of a child would tell it as the child's
    program = "from bench.memory import *; print(peak_memory(), peak_memory_of_children())"
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=bench.instruct_data.ROOT
    )
    own, children = map(int, told.stdout.split())
    assert 2**20 < own < held.nbytes and children == 0
    assert bench.memory.peak_memory() > held.nbytes


def test_speed(capsys: Printed, model_folder: Path, tmp_path: Path) -> None:
    audio = save_wav(tmp_path / "a.wav", tones(3.0))
    utterances = [Utterance(f"u{i}", audio, start=float(i), duration=1.0) for i in range(3)]
    write_manifest(tmp_path / "dev.jsonl", utterances)
    for corpus in (tmp_path, tmp_path / "dev.jsonl"):
        bench.speed.main(model_folder, corpus, files=1)
        told = capsys.readouterr().out
        assert told.startswith("1 questions, 1.0 s of audio") and "vocoder   median" in told
    write_manifest(tmp_path / "none.jsonl", [])
    with pytest.raises(ValueError, match="no utterances"):
        bench.speed.main(model_folder, tmp_path / "none.jsonl")


def test_train(capsys: Printed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench.train.SHAPES, "toy", TINY)
    monkeypatch.chdir(tmp_path)  # the commit is the code's, wherever one stands
    bench.train.main(steps=5, batch=1, block=640, units=3000, out=tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["attention"] == ("by_document" if not torch.cuda.is_available() else figures["attention"])
    assert figures["fill"] > 0.5 and figures["times_upstream"] > 0 and figures["commit"] != "unknown"
    with pytest.raises(ValueError, match="at least 4"):
        bench.train.main(steps=3)


def test_train_is_what_stages_train_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under bfloat16 accelerate ties a model into a cycle that only the collector finds; attention is a stage's choice."""
    collected: list[int] = []
    ways: list[str] = []
    monkeypatch.setattr(bench.train, "gc", SimpleNamespace(collect=lambda: collected.append(1)))
    monkeypatch.setattr(bench.train, "loading_arguments", lambda config, arguments: {"attn_implementation": "eager"})
    monkeypatch.setattr(bench.train, "takes_bounds", lambda model: ways.append(model.config._attn_implementation))
    monkeypatch.setitem(bench.train.SHAPES, "toy", TINY)
    documents = bench.train.conversations(20, 32, 0)
    packed = bench.train.PackedBlocks([(documents, np.arange(20), 1.0)], 32, 8, 0, 0)
    bench.train.trained("toy", bench.train.Padded(documents, 8, 0), 4, 2, False, 0)
    assert collected == [1] and ways == []
    bench.train.trained("toy", packed, 4, 2, False, 0)
    assert collected == [1, 1] and ways == ["eager"]


def test_units(capsys: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.units, "random_hubert", lambda: tiny_hubert(layers=12))
    monkeypatch.setattr(bench.units, "SIZE", 20)
    monkeypatch.setattr(bench.units, "peak", lambda device, dtype: 1e9)
    bench.units.main(seconds=4.0, rounds=1)
    told = capsys.readouterr().out
    assert (
        "(a) plain transformers" in told and "ours, float32, batches" in told and "units-extract of flac files" in told
    )


def test_a_way_that_runs_all_layers_did_more_work() -> None:
    features = HubertFeatures(tiny_hubert(layers=12), bench.units.LAYER, "tiny")
    encoder = UnitEncoder.from_features(features, torch.randn(5, features.dim), "tiny", "none")
    nine, ten, twelve = (bench.units.operations([tones(1.0)], encoder, layers) for layers in (9, 10, 12))
    assert twelve - nine == pytest.approx(3 * (ten - nine)) and ten > nine


def test_vocoder(capsys: Printed, tmp_path: Path) -> None:
    bench.vocoder.main(channels=32, units=10, utterances=2, seconds=0.3, rounds=1, threads=1, out=tmp_path / "out.json")
    figures = json.loads((tmp_path / "out.json").read_text())["figures"]
    assert next(iter(figures.values()))["times_baseline"] == 1 and len(figures) > 6
    assert not torch.backends.cudnn.allow_tf32
