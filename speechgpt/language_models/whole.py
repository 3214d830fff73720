"""Tokenizers and whole language models of Hugging Face folders: opened, or refused in one line that names the folder.

transformers raises errors of many classes for damaged files, without their names. And where a weight is missing, it
draws random numbers for it and goes on; here that is an error.
"""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from units.runtime.files.json_files import FileError, FileReason, read_json

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "chat_template.jinja",
)
SOME, MOST = 3, 6  # names that a message lists: of weights, of files
# what loading raises for damaged files; a ValueError of another class is about an argument, such as the attention
DAMAGE = (
    SafetensorError,
    RuntimeError,
    EOFError,
    pickle.UnpicklingError,
    json.JSONDecodeError,
    UnicodeError,
    KeyError,
    TypeError,
    AttributeError,
)
UNFIT = (ArithmeticError, AssertionError)  # raised for numbers of a config that no model can have, such as a width of 0


class ModelFilesError(ValueError):
    """Files of a tokenizer or of a language model are damaged, or do not fit together."""


def open_tokenizer(folder: str | Path, **loading: Any) -> Any:
    """The tokenizer of a folder or hub id.

    Args:
        loading: for AutoTokenizer.from_pretrained.

    Raises: FileNotFoundError if there is none; ModelFilesError if its files are damaged.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, **loading)
    except Exception as error:  # tokenizers and transformers raise errors of many classes
        if not Path(folder).is_dir():
            raise FileNotFoundError(
                f"there is no tokenizer {folder}: no folder has this name, and the hub gave none ({_said(error)})"
            ) from error
        files = [name for name in TOKENIZER_FILES if (Path(folder) / name).exists()]
        if not files:
            raise FileNotFoundError(
                f"{folder} has no tokenizer (none of {', '.join(TOKENIZER_FILES[:2])}, ..); copy its files there"
            ) from error
        raise ModelFilesError(
            f"the tokenizer in {folder} cannot be read ({_said(error)}); copy its files again: {', '.join(files)}"
        ) from error


def open_whole(folder: str | Path, **loading: Any) -> PreTrainedModel:
    """The causal language model of a folder or hub id, with all of its weights.

    Args:
        loading: for AutoModelForCausalLM.from_pretrained.

    Raises: OSError if there is none; ModelFilesError if its files are damaged, or lack a weight.
    """
    if Path(folder).is_dir():
        folder_config(folder)
        _check_index(Path(folder))
    try:
        model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **loading)
    except torch.OutOfMemoryError:
        raise
    except (*DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno is None:  # of transformers: there is no such model
            raise
        raise ModelFilesError(f"{_files(folder)} are damaged ({_said(error)}); copy them again") from error
    except UNFIT as error:
        raise ModelFilesError(
            f"no model can be made as {Path(folder) / 'config.json'} says ({_said(error)}); copy it again"
        ) from error
    missing = sorted(found["missing_keys"])
    if missing and not is_deepspeed_zero3_enabled():  # which loads a weight in parts
        more = f" and {len(missing) - SOME} others" if len(missing) > SOME else ""
        raise ModelFilesError(
            f"{_files(folder)} lack {', '.join(missing[:SOME])}{more}, which config.json asks for; "
            "copy the whole model again"
        )
    return model


def _check_index(folder: Path) -> None:
    """Raise FileError if an index of several files of weights is damaged, or names a file that is not there."""
    for path in (folder / "model.safetensors.index.json", folder / "pytorch_model.bin.index.json"):
        if path.exists() and not (folder / path.name.removesuffix(".index.json")).exists():
            named = {str(name) for name in read_json(path, {"weight_map": dict})["weight_map"].values()}
            there = {file.name for file in folder.iterdir()}
            for name in sorted(named - there) or ([] if named else ["none"]):
                raise FileError(FileReason.INVALID_FIELD, f"{path} names the file {name!r:.80}, which is not there")


@contextlib.contextmanager
def reading_adapter(folder: str | Path) -> Iterator[None]:
    """An adapter of a folder is read.

    Raises: ModelFilesError if its files are damaged: PEFT raises errors of many classes.
    """
    try:
        yield
    except (torch.OutOfMemoryError, FileNotFoundError):
        raise
    except Exception as error:
        raise ModelFilesError(
            f"the adapter in {folder} (adapter_config.json, adapter_model.safetensors) cannot be read "
            f"({_said(error)}); copy it again"
        ) from error


def check_adapter(model: Any, folder: str | Path) -> None:
    """Whether all weights of a folder's adapter are in a model, and no others: PEFT only warns.

    Raises: ModelFilesError.
    """
    path = Path(folder) / "adapter_model.safetensors"
    if not path.exists():
        return
    with safe_open(path, "pt") as file:
        stored = sum("lora_" in name for name in file.keys())  # noqa: SIM118  # it is no dict
    wanted = sum("lora_" in name for name, _ in model.named_parameters())
    if stored != wanted:
        raise ModelFilesError(
            f"{path} has {stored} matrices, and its adapter_config.json asks for {wanted} in this model; they are not "
            "of one adapter, or not of this model"
        )


def folder_config(folder: str | Path) -> PreTrainedConfig:
    """The config of the model in a folder. Raises ModelFilesError if it is damaged."""
    path = Path(folder) / "config.json"
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder)
    except FileNotFoundError:
        raise
    except Exception as error:  # each config class of transformers has its own errors
        raise ModelFilesError(f"{path}: {_said(error)}") from error
    _check_integers(config.to_dict(), path)
    return config


def _check_integers(fields: dict[str, Any], path: Path) -> None:
    """Raise ModelFilesError for an integer of over 64 bits: as a number of layers, it would fill the memory."""
    for name, value in fields.items():
        if isinstance(value, dict):
            _check_integers(value, path)
        elif isinstance(value, int) and value.bit_length() > 63:
            raise ModelFilesError(
                f"{path}: {name} has {len(str(value))} digits; an integer of a config has at most 64 bits"
            )


def _files(folder: str | Path) -> str:
    """The weights of a folder, in words, with the names of their files."""
    names = sorted(path.name for pattern in ("*.json", "*.safetensors", "*.bin") for path in Path(folder).glob(pattern))
    names = [name for name in names if name.startswith(("model", "pytorch_model", "generation_config"))]
    shown = f" ({', '.join(names[:MOST])}{', ..' if len(names) > MOST else ''})" if names else ""
    return f"the weights in {folder}{shown}"


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
