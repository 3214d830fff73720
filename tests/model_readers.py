"""Readers of language models: folders of transformers, adapters, and the published SpeechGPT."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path

import torch
from damaged_files import Reader
from omni_oracles import FOLDER, MODEL
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from speechgpt.language_models.adapters import open_language_model
from speechgpt.language_models.whole import open_tokenizer, open_whole

SHAPE = {"vocab_size": 40, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 12}
INDEX = "model.safetensors.index.json"


@functools.cache
def language_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE, bos_token_id=1, eos_token_id=2))


def write_whole(folder: Path) -> None:
    language_model().save_pretrained(folder)


def write_shards(folder: Path) -> None:
    language_model().save_pretrained(folder, max_shard_size="4KB")
    assert (folder / INDEX).exists()


def write_torch(folder: Path) -> None:
    write_whole(folder)
    (folder / "model.safetensors").unlink()
    torch.save(language_model().state_dict(), folder / "pytorch_model.bin")


def write_tokenizer(folder: Path) -> None:
    for path in (FOLDER / "variant" / MODEL).glob("*token*"):
        shutil.copy(path, folder)


@functools.cache
def adapter() -> Path:
    """A folder that holds a model in `base/`, and an adapter of it."""
    folder = Path(tempfile.mkdtemp())
    write_whole(folder / "base")
    model = get_peft_model(open_whole(folder / "base"), LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(folder)
    return folder


def write_adapter(folder: Path) -> None:
    shutil.copytree(adapter(), folder, dirs_exist_ok=True)


MODEL_READERS = {
    "weights of a language model": Reader("model.safetensors", write_whole, open_whole),
    "config of a language model": Reader("config.json", write_whole, open_whole),
    "settings of generation": Reader("generation_config.json", write_whole, open_whole),
    "index of weights": Reader(INDEX, write_shards, open_whole),
    "shard of weights": Reader("model-00002-of-00002.safetensors", write_shards, open_whole),
    "weights in torch's form": Reader("pytorch_model.bin", write_torch, open_whole),
    "tokenizer": Reader("tokenizer.json", write_tokenizer, open_tokenizer),
    "settings of a tokenizer": Reader("tokenizer_config.json", write_tokenizer, open_tokenizer),
    "weights of an adapter": Reader("adapter_model.safetensors", write_adapter, open_language_model),
    "settings of an adapter": Reader("adapter_config.json", write_adapter, open_language_model),
    "weights of an adapter, merged": Reader(
        "adapter_model.safetensors", write_adapter, lambda f: open_language_model(f, merge=True)
    ),
}
