"""Published BLSP folders that cannot be adopted, and folders that the published code could not open."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from blsp_oracles import FOLDER

from units.encoder.published.checkpoint_files import UnreadableFile
from variants.blsp.upstream import adopt, export, main

PUBLISHED = FOLDER / "variant/checkpoint"
WEIGHTS = "pytorch_model.bin"


class Code:
    """A pickle that would run a program."""

    def __reduce__(self):
        return Path.touch, (Path("ran"),)


@pytest.fixture
def published(tmp_path) -> Path:
    return Path(shutil.copytree(PUBLISHED, tmp_path / "published"))


def test_the_command(tmp_path, capsys) -> None:
    main.cli(["adopt", str(PUBLISHED), str(tmp_path / "ours")])
    main.cli(["export", str(tmp_path / "ours"), str(tmp_path / "theirs")])
    before, after = (torch.load(folder / WEIGHTS, weights_only=True) for folder in (PUBLISHED, tmp_path / "theirs"))
    assert all(torch.equal(weight, before[name]) for name, weight in after.items()) and len(after) >= len(before) - 2
    with pytest.raises(SystemExit) as ended:
        main.cli(["adopt", str(PUBLISHED), str(tmp_path / "ours")])
    assert ended.value.code == 2 and "holds a model already" in capsys.readouterr().err


def test_files_that_cannot_be_read(published, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = (published / WEIGHTS).read_bytes()
    for number, damaged in enumerate((whole[: len(whole) // 2], b"", pickle.dumps({"subsampler.x": Code()}))):
        (published / WEIGHTS).write_bytes(damaged)
        with pytest.raises((UnreadableFile, ValueError)):
            adopt(published, tmp_path / f"out{number}")
    assert not (tmp_path / "ran").exists()
    (published / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError):
        adopt(published, tmp_path / "none")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda weights: weights.pop("adapter.fc1.weight"), "adapter.fc1.weight"),
        (lambda weights: weights.update({"adapter.fc1.weight": torch.zeros(2, 2)}), "adapter.fc1.weight"),
        (lambda weights: weights.update({"lm_head.weight": torch.zeros(2, 2)}), "lm_head.weight"),
    ],
)
def test_weights_that_are_missing_or_foreign(published, tmp_path, change, named: str) -> None:
    weights = torch.load(published / WEIGHTS, weights_only=True)
    change(weights)
    torch.save(weights, published / WEIGHTS)
    with pytest.raises(ValueError, match=named):
        adopt(published, tmp_path / "out")


def test_a_config_of_another_model(published, tmp_path) -> None:
    (published / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="whisper_config"):
        adopt(published, tmp_path / "out")
    (published / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        adopt(published, tmp_path / "out")


def test_what_the_published_code_cannot_open(tmp_path) -> None:
    ours = adopt(PUBLISHED, tmp_path / "ours")
    facts = json.loads((ours / "speechgpt.json").read_text())
    facts["extra"] |= {"template": "chat", "layer": 1}
    (ours / "speechgpt.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="the template is chat, not blsp.*layer is 1, not 2"):
        export(ours, tmp_path / "theirs")
