"""Language models and tokenizers whose files lack something are refused, where transformers would draw numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from model_readers import INDEX, adapter, write_shards, write_tokenizer, write_whole
from safetensors.torch import load_file, save_file

from speechgpt.language_models.adapters import open_language_model
from speechgpt.language_models.whole import ModelFilesError, open_tokenizer, open_whole
from units.runtime.command import one_line
from units.runtime.files.json_files import FileError


def test_a_weight_that_is_missing_is_named(tmp_path) -> None:
    write_whole(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelFilesError, match="model.layers.1.mlp.up_proj.weight"):
        open_whole(tmp_path)


def test_weights_of_another_shape_are_refused(tmp_path) -> None:
    write_whole(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 50}))
    with pytest.raises(ModelFilesError, match="model.safetensors"):
        open_whole(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("head_dim", 0), ("num_key_value_heads", 0), ("pad_token_id", 10**400), ("num_hidden_layers", 10**400)],
)
def test_a_number_that_no_model_can_have_is_refused(tmp_path, field: str, value: int) -> None:
    """As a number of layers, 10^400 once filled the memory."""
    write_whole(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(ModelFilesError, match="config.json") as refusal:
        open_whole(tmp_path)
    assert one_line(refusal.value)


def test_a_file_of_an_index_that_is_missing_is_named(tmp_path) -> None:
    write_shards(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileError, match=f"{INDEX} names .*model-00002"):
        open_whole(tmp_path)


@pytest.mark.parametrize("merge", [True, False])
def test_an_adapter_without_a_matrix_is_refused(tmp_path, merge: bool) -> None:
    folder = Path(shutil.copytree(adapter(), tmp_path / "adapter"))
    weights = load_file(folder / "adapter_model.safetensors")
    del weights[next(name for name in sorted(weights) if "lora_B" in name)]
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(ModelFilesError, match="3 matrices, and its adapter_config.json asks for 4"):
        open_language_model(folder, merge=merge)


def test_a_folder_without_a_tokenizer(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="has no tokenizer"):
        open_tokenizer(tmp_path)
    write_tokenizer(tmp_path)
    assert len(open_tokenizer(tmp_path))
    with pytest.raises(FileNotFoundError, match="there is no tokenizer"):
        open_tokenizer(tmp_path / "nowhere")
