"""A stage writes over nothing but itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from tiny_run import make_run, stage_config

from stages import stage
from stages.config import Source, StageConfig
from stages.place import PlaceError
from stages.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    run = make_run(tmp_path_factory.mktemp("built"))
    train(stage_config(run, training={"max_steps": 1}))
    (run / "inner/stage1").mkdir(parents=True)
    (run / "link").symlink_to(run / "text_llm")
    return run


def contents(run: Path) -> dict[str, str]:
    files = [path for path in sorted(run.rglob("*")) if path.is_file()]
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def second(run: Path, **changes) -> StageConfig:
    fields = {"stage": "stage2", "model": "stage1", "widen": None, "data": [Source("data/chat.jsonl.gz")]}
    return stage_config(run, **{**fields, **changes})


@pytest.mark.parametrize(
    ("out", "named"),
    [
        ("text_llm", "out and model are both text_llm"),
        ("./text_llm/", "out and model are both"),
        ("link", "out and model are both"),
        ("text_llm/inside", "lie in one another"),
        (".", "lie in one another|is the run folder"),
        ("stage1/../..", "is the run folder or holds it|lie in one another"),
        ("data", "data, which holds chat.jsonl.gz, which no stage wrote"),
        ("units/train", "which no stage wrote"),
        ("unit_encoder", "which no stage wrote"),
        ("corpus/text.txt", "is a file"),
    ],
)
def test_a_stage_that_would_overwrite_something_is_refused(run, monkeypatch, out: str, named: str) -> None:
    monkeypatch.setattr(stage, "training_arguments", None)
    before = contents(run)
    with pytest.raises(PlaceError, match=named):
        train(stage_config(run, out=out))
    assert contents(run) == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"out": "stage1"}, "out and model are both stage1"),
        ({"out": "stage1", "model": "other"}, "stage1, which holds stage1 of the system speechgpt, finished"),
        ({"out": "text_llm"}, "text_llm, which holds .*config.json.*, which no stage wrote"),
        ({"stage": "stage1", "out": "stage1", "model": "other", "kind": "chain"}, "which holds stage1 of kind units"),
    ],
)
def test_another_stage_or_a_base_model_is_not_done_already(run, changes, named: str) -> None:
    before = contents(run)
    with pytest.raises(PlaceError, match=named):
        train(second(run, **changes))
    assert contents(run) == before


def test_the_same_stage_is_done_already(run, capsys) -> None:
    before = contents(run)
    assert train(stage_config(run, training={"max_steps": 1})) == run / "stage1"
    printed = capsys.readouterr().out
    assert contents(run) == before and "stage1 is done already" in printed and "trained with other" not in printed
    train(stage_config(run, seed=7, training={"learning_rate": 1.0}))
    assert "was trained with other seed, training;" in capsys.readouterr().out
    train(stage_config(run, model="other"))
    assert "was trained from text_llm, not from other" in capsys.readouterr().out


def test_a_text_stage_does_not_take_a_base_model_for_its_own_end(run) -> None:
    config = stage_config(run, stage="text", out="text_llm", model="another", widen=None)
    with pytest.raises(PlaceError, match="which no stage wrote"):
        train(config)


def test_a_stage_of_release_0_1_0_is_done_already(run, tmp_path) -> None:
    made = make_run(tmp_path / "run")
    out = train(stage_config(made, training={"max_steps": 1}))
    (out / "stage.yaml").unlink()
    facts = json.loads((out / "speechgpt.json").read_text())
    del facts["system"], facts["config"]["kind"]
    (out / "speechgpt.json").write_text(json.dumps(facts))
    assert train(stage_config(made)) == out


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: [", b"- 1", b""])
def test_a_damaged_record_is_named(run, tmp_path, content: bytes) -> None:
    made = make_run(tmp_path / "run")
    (made / "stage1").mkdir()
    (made / "stage1/stage.yaml").write_bytes(content)
    with pytest.raises(PlaceError, match="stage.yaml is damaged"):
        train(stage_config(made))
