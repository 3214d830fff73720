"""Language models in folders that hold a low-rank adapter and refer to a base model, opened like any other.

`lora: {merge: false}` of a stage writes such a folder. PEFT names the base by one path, which no longer exists when the
run folder was moved. So the base is looked for in this order: `base/` in the folder, the path from the folder that was
recorded when it was written, and the path that PEFT recorded, which may be a hub id.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from speechgpt.language_models.whole import check_adapter, open_whole, reading_adapter
from units.runtime.files.atomic import written_whole
from units.runtime.files.json_files import FileError, read_json
from units.runtime.provenance import fingerprint

ADAPTER_CONFIG = "adapter_config.json"
BASE = "base"  # folder in an adapter folder, with a base that exists nowhere else
REFERENCE = "base.json"  # the path from the adapter folder to its base, and the base's fingerprint

CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model")
TEXT_LLM_FILES = ("*.txt", "*.tiktoken")  # of tokenizers, in folders of text LLMs


class BaseModelError(ValueError):
    """The base model of an adapter is damaged, or another one than the adapter was trained on."""


def checkpoint_files(folder: Path) -> list[Path]:
    """Files of a checkpoint, without folders in it."""
    return [path for pattern in CHECKPOINT_FILES for path in sorted(folder.glob(pattern))]


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter in place of a whole model."""
    return (Path(folder) / ADAPTER_CONFIG).exists()


def set_base(folder: Path, base: str, final: Path) -> None:
    """Record where the base of an adapter lies.

    Args:
        folder: of the adapter, as it is being written.
        base: folder or hub id of the base.
        final: where the adapter folder will lie.
    """
    path = folder / ADAPTER_CONFIG
    settings = _read(path)
    if (folder / BASE).is_dir():
        settings["base_model_name_or_path"] = str((final / BASE).absolute())
    elif Path(base).is_dir():
        settings["base_model_name_or_path"] = str(Path(base).absolute())
        relative = os.path.relpath(Path(base).resolve(), final.resolve())
        with written_whole(folder / REFERENCE) as file:
            json.dump({"path": relative, "fingerprint": _fingerprint(Path(base))}, file, indent=1)
    else:
        settings["base_model_name_or_path"] = base
    with written_whole(path) as file:
        json.dump(settings, file, indent=2)


def copy_model(source: Path, folder: Path, final: Path) -> None:
    """Copy the files of a checkpoint; of an adapter, with its base in `base/`, unless the base has only a hub id.

    Args:
        source: the checkpoint folder.
        folder: where it is written.
        final: where it will lie.

    Raises: as `find_base`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in checkpoint_files(source):
        shutil.copy2(path, folder / path.name)
    if not is_adapter(source):
        return
    (folder / REFERENCE).unlink(missing_ok=True)  # its path begins at the source
    base = Path(find_base(source))
    if base.is_dir():
        copy_model(base, folder / BASE, final / BASE)
        for path in (path for pattern in TEXT_LLM_FILES for path in base.glob(pattern)):
            shutil.copy2(path, folder / BASE / path.name)
        if not any((folder / BASE).glob("*.safetensors")):
            for path in base.glob("*.bin"):
                shutil.copy2(path, folder / BASE / path.name)
    set_base(folder, str(base), final)


def find_base(folder: str | Path, final: Path | None = None) -> str:
    """Folder or hub id of the base model of an adapter folder.

    Args:
        final: where the folder will lie, if it is still being written elsewhere.

    Raises:
        FileNotFoundError: the base is in none of the places where it is looked for.
        BaseModelError: the adapter's files are damaged, or the base has other weights than it had.
    """
    folder = Path(folder)
    if (folder / BASE).is_dir():
        return str(folder / BASE)
    recorded = _read(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(recorded, str) or not recorded:
        raise BaseModelError(f"{folder / ADAPTER_CONFIG} names no base model: base_model_name_or_path is {recorded!r}")
    reference = _read(folder / REFERENCE) if (folder / REFERENCE).exists() else {}
    places = [Path(recorded)]
    if isinstance(reference.get("path"), str):
        places.insert(0, Path(os.path.normpath((final or folder).resolve() / reference["path"])))
    found = next((place for place in places if _is_model(place)), None)
    if found is None:
        if reference or Path(recorded).is_absolute():
            looked = " nor ".join(str(place) for place in places)
            raise FileNotFoundError(
                f"{folder} holds an adapter, and its base model is neither {looked}; copy the base to one of them"
                if len(places) > 1
                else f"{folder} holds an adapter, and its base model {looked} does not exist; copy the base there"
            )
        return recorded
    if found.resolve() == folder.resolve():
        raise BaseModelError(f"{folder} names itself as the base of its adapter, in {ADAPTER_CONFIG} or {REFERENCE}")
    if "fingerprint" in reference and _fingerprint(found) != reference["fingerprint"]:
        raise BaseModelError(
            f"{found} is not the base model that the adapter in {folder} was trained on: its weights differ from "
            f"those that {REFERENCE} records; copy that base there, or train the adapter again"
        )
    return str(found)


def _fingerprint(base: Path) -> str | None:
    """The fingerprint of a base model; None if its weights are in no safetensors file."""
    return fingerprint(base) if any(base.rglob("*.safetensors")) else None


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").exists() or is_adapter(folder)


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises BaseModelError if it holds something else."""
    try:
        return read_json(path)
    except FileError as error:
        raise BaseModelError(f"{error}; copy or write it again") from error


def shape_of(folder: str | Path) -> PreTrainedConfig:
    """The config of the language model in a folder, or of its base. Raises: as `find_base`."""
    if is_adapter(folder):
        return shape_of(find_base(folder))
    path = Path(folder) / "config.json"
    if not path.exists():
        return _shape_on_hub(str(folder))
    _read(path)
    try:
        return AutoConfig.from_pretrained(folder)
    except Exception as error:  # each config class of transformers has its own errors
        raise BaseModelError(f"{path}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def _shape_on_hub(name: str) -> PreTrainedConfig:
    """The config of a model on the hub. Raises FileNotFoundError naming the model if the hub gives none."""
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:  # no such name, no network, not allowed, a name that none can have
        raise FileNotFoundError(
            f"there is no model {name}: no folder of this name holds a config.json, and the hub gave none "
            f"({' '.join(str(error).split())[:200]}). Give a folder, or on a machine with internet: hf download {name}"
        ) from error


def open_language_model(
    folder: str | Path, merge: bool = False, final: Path | None = None, **loading: Any
) -> PreTrainedModel:
    """Open a whole language model, or a base with the folder's adapter.

    Args:
        folder: or hub id.
        merge: add an adapter to the weights, for a model that is trained further; otherwise it stays beside them.
        final: as in `find_base`.
        loading: for AutoModelForCausalLM.from_pretrained.

    Raises: as `find_base` and `open_whole`; ValueError to merge under DeepSpeed ZeRO-3, where no process has whole
        weights.
    """
    if not is_adapter(folder):
        return open_whole(folder, **loading)
    base = find_base(folder, final)
    model = open_language_model(base, merge=True, **loading)  # the base of an adapter may be an adapter
    if merge:
        if is_deepspeed_zero3_enabled():
            raise ValueError(
                f"{folder} holds an adapter, which cannot be merged under DeepSpeed ZeRO-3; start from a stage with "
                "lora: {merge: true}, or use zero2"
            )
        return merged(model, folder)
    with reading_adapter(folder):
        model.load_adapter(str(folder))
    check_adapter(model, folder)
    return model


def merged(model: PreTrainedModel, adapter: str | Path) -> PreTrainedModel:
    """Add an adapter to a model's weights.

    An adapter on one of two tied embeddings changes that one alone while it trains; added to the shared matrix, it
    would change both. So they are untied first, and the merged model computes what was trained.
    """
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and embedding is not None and head.weight is embedding.weight
    with reading_adapter(adapter):
        wrapped = PeftModel.from_pretrained(model, str(adapter))
    check_adapter(wrapped, adapter)
    parts = (model.get_input_embeddings(), model.get_output_embeddings())
    if tied and any(isinstance(part, BaseTunerLayer) for part in parts):
        untie(model)
    whole = wrapped.merge_and_unload()
    for weight in whole.parameters():  # PEFT froze them, and a next stage trains them
        if weight.is_floating_point():
            weight.requires_grad_(True)
    return whole


def untie(model: PreTrainedModel) -> None:
    """Give the output embedding a matrix of its own, in place, with the same values."""
    head = model.get_output_embeddings()
    head = getattr(head, "base_layer", head)  # below an adapter
    head.weight = nn.Parameter(head.weight.detach().clone())
    for config in {id(one): one for one in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}
