"""Every bench runs at a tiny size. The figures mean nothing there; the test is that the benches follow the code."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from tiny_blsp import blsp_config, make_blsp_run
from tiny_parts import tiny_hubert, tones
from tiny_run import make_run

import bench.attention
import bench.instruct_data
import bench.listening
import bench.memory
import bench.serve
import bench.speed
import bench.timing.train
import bench.timing.units
import bench.timing.widening
import bench.train
import bench.units
import bench.vocoder
import bench.widening
from bench.options import TrainOptions, VocoderOptions, WideningOptions
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


def test_listening(capsys: Printed, tmp_path: Path) -> None:
    run = make_blsp_run(tmp_path / "run")
    fields = {**dataclasses.asdict(blsp_config(run)), "run": str(run)}
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump(fields))
    bench.listening.main(tmp_path / "stage.yaml", run, steps=5, out=tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert all(figures[name] > 0 for name in ("tokens a second, ours", "tokens a second, upstream's way"))
    assert figures["tokens a second, recordings encoded live"] > 0 and 0 < figures["share"] < 1
    assert "times" in capsys.readouterr().out


@pytest.mark.slow
def test_instruct_data(capsys: Printed, tmp_path: Path) -> None:
    bench.instruct_data.main([50], tmp_path / "rows.json")
    assert "describe" in capsys.readouterr().out
    assert all(row["mib"] > 10 and row["seconds"] > 0 for row in json.loads((tmp_path / "rows.json").read_text()))


def test_memory_is_not_the_parents() -> None:
    held = np.ones(300 * 2**20, np.uint8)  # getrusage of a child would count it
    program = "from bench.memory import *; print(peak_memory(), peak_memory_of_children())"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=bench.memory.ROOT
    )
    own, children = map(int, done.stdout.split())
    assert 2**20 < own < held.nbytes and children == 0
    assert bench.memory.peak_memory() > held.nbytes


def test_speed(capsys: Printed, model_folder: Path, tmp_path: Path) -> None:
    audio = save_wav(tmp_path / "a.wav", tones(3.0))
    utterances = [Utterance(f"u{i}", audio, start=float(i), duration=1.0) for i in range(3)]
    write_manifest(tmp_path / "dev.jsonl", utterances)
    for corpus in (tmp_path, tmp_path / "dev.jsonl"):
        bench.speed.main(model_folder, corpus, files=1)
        printed = capsys.readouterr().out
        assert printed.startswith("1 questions, 1.0 s of audio") and "vocoder   median" in printed
    write_manifest(tmp_path / "none.jsonl", [])
    with pytest.raises(ValueError, match="no utterances"):
        bench.speed.main(model_folder, tmp_path / "none.jsonl")


def test_train(capsys: Printed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench.timing.train.SHAPES, "toy", TINY)
    monkeypatch.chdir(tmp_path)  # the commit is the code's, in any working directory
    bench.train.main(TrainOptions(steps=5, batch=1, block=640, units=3000, out=tmp_path / "figures.json"))
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["attention"] == ("by_document" if not torch.cuda.is_available() else figures["attention"])
    assert figures["fill"] > 0.5 and figures["times_upstream"] > 0 and figures["commit"] != "unknown"
    with pytest.raises(ValueError, match="at least 4"):
        TrainOptions(steps=3)


def test_train_uses_the_attention_of_stages_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under bfloat16 accelerate puts a model into a reference cycle, so each training begins with a collection."""
    collected: list[int] = []
    ways: list[str] = []
    monkeypatch.setattr(bench.timing.train, "gc", SimpleNamespace(collect=lambda: collected.append(1)))
    monkeypatch.setattr(
        bench.timing.train, "loading_arguments", lambda config, arguments: {"attn_implementation": "eager"}
    )
    monkeypatch.setattr(
        bench.timing.train, "takes_bounds", lambda model: ways.append(model.config._attn_implementation)
    )
    monkeypatch.setitem(bench.timing.train.SHAPES, "toy", TINY)
    documents = bench.timing.train.conversations(20, 32, 0)
    packed = bench.timing.train.PackedBlocks([(documents, np.arange(20), 1.0)], 32, 8, 0, 0)
    bench.timing.train.trained("toy", bench.timing.train.Padded(documents, 8, 0), 4, 2, False, 0)
    assert collected == [1] and ways == []
    bench.timing.train.trained("toy", packed, 4, 2, False, 0)
    assert collected == [1, 1] and ways == ["eager"]


def test_units(capsys: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.timing.units, "random_hubert", lambda: tiny_hubert(layers=12))
    monkeypatch.setattr(bench.timing.units, "SIZE", 20)
    monkeypatch.setattr(bench.timing.units, "peak", lambda device, dtype: 1e9)
    bench.units.main(seconds=4.0, rounds=1)
    printed = capsys.readouterr().out
    assert (
        "(a) plain transformers" in printed
        and "ours, float32, batches" in printed
        and "units-extract of flac files" in printed
    )


def test_more_layers_are_more_operations() -> None:
    features = HubertFeatures(tiny_hubert(layers=12), bench.timing.units.LAYER, "tiny")
    encoder = UnitEncoder.from_features(features, torch.randn(5, features.dim), "tiny", "none")
    nine, ten, twelve = (bench.timing.units.operations([tones(1.0)], encoder, layers) for layers in (9, 10, 12))
    assert twelve - nine == pytest.approx(3 * (ten - nine)) and ten > nine


def test_vocoder(capsys: Printed, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    bench.vocoder.main(VocoderOptions(32, units=10, utterances=2, seconds=0.3, rounds=1, threads=1, out=out))
    figures = json.loads(out.read_text())["figures"]
    assert next(iter(figures.values()))["times_baseline"] == 1 and len(figures) > 6
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("name", ["attention", "instruct_data", "speed", "train", "units", "vocoder", "widening"])
def test_help_needs_no_torch(name: str) -> None:
    program = (
        f"import sys, bench.{name} as one\ntry:\n    one.main.cli(['--help'])\nexcept SystemExit as done:\n"
        "    assert not done.code and not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=bench.memory.ROOT)
    assert done.returncode == 0, done.stderr
    assert f"python -m bench.{name}" in done.stdout


def test_widening_runs_what_is_missing(capsys: Printed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")
    (tmp_path / "texts.txt").write_text("red is my dog\nthe cat of blue\n")
    options = WideningOptions(
        llm=run / "text_llm",
        units=run / "units/train",
        encoder=run / "unit_encoder",
        texts=tmp_path / "texts.txt",
        inits=["random", "centres:0.5"],
        rates=[1e-2],
        warm_ups=[0, 1],
        steps=[1, 3],
        block=64,
        held_out=2,
    )
    ran: list[str] = []
    plain = bench.timing.widening._run
    monkeypatch.setattr(bench.timing.widening, "_run", lambda *given: ran.append(given[2].init) or plain(*given))
    bench.widening.main(tmp_path / "out", options)
    assert ran == ["random", "centres:0.5"] * 2
    runs = tmp_path / "out/runs.jsonl"
    lines = [json.loads(line) for line in runs.read_text().splitlines()]
    assert [[one["step"] for one in line["report"]] for line in lines] == [[0, 1, 3]] * 4
    assert len({line["report"][-1]["unit_loss"] for line in lines}) == 4  # each setting is another training
    assert all(line["report"][-1]["unit_loss"] < line["report"][0]["unit_loss"] for line in lines)
    runs.write_text(
        "\n".join(runs.read_text().splitlines()[:2]) + '\n{"init": "cut sh'
    )  # killed while it wrote the third
    bench.widening.main(tmp_path / "out", options)
    assert len(ran) == 6 and len(runs.read_text().splitlines()) == 4
    printed = capsys.readouterr().out
    assert printed.count("| centres:0.5 | 0.01 | 1 |") >= 2
    apart = {"inits": ["random"], "warm_ups": [0], "rows_rates": [1.0, 5.0], "words": ["learn", "keep"]}
    found = bench.timing.widening.compare(tmp_path / "out", dataclasses.replace(options, **apart))
    assert len(found) == 7  # one of them had run
    assert len({line["report"][-1]["unit_loss"] for line in found}) == 7
    wrongs = ({"inits": ["mean:-1"]}, {"inits": ["best"]}, {"rates": [0.0]}, {"steps": []}, {"block": 1})
    for wrong in (*wrongs, {"rows_rates": [0.0]}, {"words": ["some"]}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}"):
            dataclasses.replace(options, **wrong)
    with pytest.raises(FileNotFoundError, match="real-models"):
        bench.widening.main(tmp_path / "out", dataclasses.replace(options, llm=tmp_path / "none"))


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"threads": -1}, {"seconds": 0.0}])
def test_options_are_checked(wrong: dict) -> None:
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=f"{name} is .*allowed: "):
        VocoderOptions(**wrong)


def test_the_server_bench_asks_both_ways(model_folder: Path, tmp_path: Path, capsys: Printed) -> None:
    wav = save_wav(tmp_path / "q.wav", tones(0.3))
    write_manifest(tmp_path / "questions.jsonl", [Utterance("q", wav)])
    bench.serve.main(model_folder, tmp_path / "questions.jsonl", clients=[1, 2], asked=2)
    printed = capsys.readouterr().out
    assert printed.count("answers a second") == 4 and "0 of 1 questions got different answers" in printed
    with pytest.raises(ValueError, match="rows"):
        bench.serve.main(model_folder, tmp_path / "questions.jsonl", rows=0)
