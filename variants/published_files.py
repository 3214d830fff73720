"""Files of published model folders: weights of any form, JSON, tokenizers. No code of a pickle runs."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from units.runtime.files.json_files import FileError, read_json

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS = "config.json", "pytorch_model.bin"
BUFFER = "rotary_emb.inv_freq"  # a constant that older transformers stored
TOKENIZER = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def read_weights(source: Path) -> dict[str, Tensor]:
    """All tensors of a folder: one file or several, of torch or safetensors. No code of a pickle runs.

    Raises: FileNotFoundError; units.encoder.published.checkpoint_files.UnreadableFile or ValueError for a damaged file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from units.encoder.published.checkpoint_files import read_torch

    files = sorted(source.glob("*.safetensors")) or sorted(source.glob("pytorch_model*.bin"))
    if not files:
        raise FileNotFoundError(f"{source} has no {WEIGHTS} and no .safetensors")
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            weights |= load_file(file) if file.suffix == ".safetensors" else dict(read_torch(file))
        except (SafetensorError, TypeError) as error:
            raise ValueError(f"{file} is damaged ({error}); copy it again") from error
    return weights


def folder_weights(folder: Path) -> dict[str, Tensor]:
    """As read_weights, without constants."""
    return {name: weight for name, weight in read_weights(folder).items() if not name.endswith(BUFFER)}


@contextlib.contextmanager
def described(path: Path) -> Iterator[None]:
    """What is built by a file's values; an error that a wrong value causes names the file.

    Raises: ValueError.
    """
    try:
        yield
    except Exception as error:  # each config class of transformers has its own errors
        if path.name in str(error):
            raise
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(f"{path} describes no model ({said}); copy it again") from error


def copy_tokenizer(source: Path, *folders: Path) -> None:
    """Copy the files of a tokenizer, those that there are."""
    copy_some(source, TOKENIZER, *folders)


def copy_some(source: Path, names: Sequence[str], *folders: Path) -> None:
    """Copy the files of these names that there are."""
    for name in names:
        if (source / name).exists():
            for folder in folders:
                shutil.copy(source / name, folder / name)


def check_shapes(needed: dict[str, Tensor], found: dict[str, Tensor], source: Path, written: Any = str) -> None:
    """Raise ValueError if a weight is missing, unknown, or of another shape than the config's.

    Args:
        written: the name that a weight has in the source.
    """
    shapes = {name: tuple(weight.shape) for name, weight in needed.items()}
    given = {name: tuple(weight.shape) for name, weight in found.items()}
    if wrong := sorted(name for name in {**shapes, **given} if shapes.get(name) != given.get(name)):
        name = wrong[0]
        raise ValueError(
            f"{source}: {written(name)} has the shape {given.get(name)}; its config needs {shapes.get(name)}"
        )


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file.

    Raises: FileNotFoundError; ValueError if it is damaged.
    """
    try:
        return read_json(path)
    except FileError as error:
        raise ValueError(f"{error}; copy it again") from error


def write_object(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object."""
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
