"""The preset smol: its files parse, its plan prints, and make makes everything that they name."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from stage_configs import CONFIGS, parsed

from stages.planning.cluster import Cluster
from stages.planning.plan import make_plan
from stages.train import main
from stages.unit_system.system import UNIT_SYSTEM

ROOT = Path(__file__).parents[2]
STAGES = ("stage1", "stage2", "stage3")
MODULES = r"-m ((?:units|eval|stages|speechgpt|instruct_data)\.[\w.]+)"


@pytest.fixture(autouse=True)
def no_outer_make(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make test` runs these tests, and variables of its make would make theirs print folders entered and left."""
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        monkeypatch.delenv(name, raising=False)


def made(run: Path, *arguments: str) -> str:
    """What make would run; the environment and the real models count as there."""
    done = [
        f"-o{name}" for name in (".venv/.installed", ".venv/.flite-speaks", "runs/real/whisper-tiny.en/config.json")
    ]
    line = ["make", "-n", *arguments, "PRESET=smol", f"RUN={run}", *done]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_keeps_a_share_of_text_and_fits(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    file = CONFIGS / f"smol/{stage}.yaml"
    config = parsed(monkeypatch, str(file))
    assert [one.path for one in config.data if one.tasks == ["chat"]][:1] == ["data/own/text.jsonl.gz"]
    assert "own_texts.txt" in [one.path for one in config.data]
    assert all(not one.hold_out for one in config.data if one.path.endswith(("text.jsonl.gz", ".txt")))
    plan = make_plan(config, UNIT_SYSTEM.size(config, file), Cluster(1, "RTX3090-24G"))
    assert plan.fits and plan.size.parameters > 134e6  # SmolLM2 and its new rows: no weights are needed to know
    # a night on two cores: 100 tokens a second for less than four hours a stage
    assert plan.tokens / 100 < 4 * 3600 and config.training["save_steps"] * plan.tokens_per_step / 100 < 3600


def test_the_plan_prints_without_the_weights(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for stage in STAGES:
        main([str(CONFIGS / f"smol/{stage}.yaml"), "--plan", "--gpu", "H100-80G", "--run", str(tmp_path)])
    printed = capsys.readouterr().out
    assert all(f"smol/{stage} on 1 x H100-80G" in printed or stage in printed for stage in STAGES)
    assert "DOES NOT FIT" not in printed


def test_make_makes_every_file_that_a_stage_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    printed = made(tmp_path, "data")
    for stage in STAGES:
        config = parsed(monkeypatch, str(CONFIGS / f"smol/{stage}.yaml"))
        for source in config.data:
            folder = tmp_path / source.path
            folder = folder.parent if folder.name.endswith(".jsonl.gz") else folder
            assert re.search(rf"{re.escape(str(folder))}(?![\w/])", printed), source.path
            if source.interleave:
                assert str(tmp_path / source.interleave.alignments) in printed
    assert printed.count("units.dataset.extract") == 4 and "units.corpus.align" in printed
    for folder in ("corpus/train", "corpus/answers", "toy/train", "chats/train"):
        assert f"extract {tmp_path}/{folder}.jsonl {tmp_path}/units/" in printed


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    everything = re.findall(MODULES, made(tmp_path, "eval"))
    assert everything[-3:] == ["eval.run", "eval.run", "eval.compare"]
    assert everything.count("stages.train") == 3 and "speechgpt.bundle" in everything
    done = [
        "corpus/train.jsonl",
        "corpus/answers.jsonl",
        "toy/corpus.json",
        "toy/train.jsonl",
        "own.jsonl",
        "own_texts.txt",
        "chats/train.jsonl",
        "words.tsv",
        "unit_encoder/codebook.json",
        *(f"units/{name}/unit_set.json" for name in ("train", "answers", "toy", "chats")),
        "data/own/build.json",
        "data/build.json",
        "stage1/speechgpt.json",
    ]
    for name in done:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert re.findall(MODULES, made(tmp_path, "stage3")) == ["stages.train", "stages.train"]
    for neighbour in ("corpus/train.jsonl", "toy/corpus.json", "units/train/unit_set.json", "own.jsonl"):
        (tmp_path / neighbour).touch()
    assert re.findall(MODULES, made(tmp_path, "data")) == []
    (tmp_path / "units/toy/unit_set.json").unlink()
    assert re.findall(MODULES, made(tmp_path, "data")) == ["units.dataset.extract"]  # what is missing, alone


def test_blsp_hears_a_larger_corpus_with_the_same_models(tmp_path: Path) -> None:
    assert f"open_corpus --out {tmp_path}/corpus " in made(tmp_path, f"{tmp_path}/corpus/train.jsonl")
    printed = made(tmp_path, f"{tmp_path}/blsp_labels/labels.json")
    assert f"open_corpus --out {tmp_path}/heard_corpus --lines 80000" in printed
    assert f"{tmp_path}/corpus" not in printed
    assert "--llm runs/real/smollm2-135m-instruct" in printed and "--repeats transcript" in printed


def test_llama_omni_learns_from_files_that_make_makes(tmp_path: Path) -> None:
    printed = made(tmp_path, "llama-omni")
    configs = ROOT / "variants" / "llama_omni" / "configs" / "smol"
    for stage in ("stage1", "stage2"):
        assert f"llama_omni.train variants/llama_omni/configs/smol/{stage}.yaml --run {tmp_path}" in printed
        for source in yaml.safe_load((configs / f"{stage}.yaml").read_text())["data"]:
            folder = (tmp_path / source["path"]).parent
            assert re.search(rf"instruct_data.build .*\n?.*--speech audio --out {folder}\n", printed), source
    assert "-m stages.train" not in printed  # it starts from the LLM itself
