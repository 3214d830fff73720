"""Where a stage starts: its model is found, checked, and loaded as the machine allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.utils import is_flash_attn_2_available

from speechgpt.language_models.adapters import is_adapter, shape_of
from stages.config import StageConfig
from stages.packing.attention import BY_DOCUMENT, VARLEN
from stages.planning.size import check_block, positions_of

# in a run folder; never hub ids
OUR_FOLDERS = ("text_llm_untrained", "text_llm", "stage1", "stage2", "stage3", "stage4")


def find_start(config: StageConfig, whole: bool) -> Path | str:
    """Folder, or hub id, of the model that the stage starts from.

    Args:
        whole: download the whole folder from the hub: transformers itself does not fetch `speechgpt.json`.

    Raises: FileNotFoundError, naming what to train first, if a folder of this run does not exist or is not finished,
        or if the hub has none of this name.
    """
    folder = config.at(config.model)
    if (folder / "config.json").exists() or is_adapter(folder):
        return folder
    if folder.is_dir() or config.model in OUR_FOLDERS or Path(config.model).is_absolute():
        state = "is not finished (no config.json)" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(f"{folder} {state}: {config.stage} starts from it, so train {config.model} first")
    if not whole:
        return config.model
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(config.model))
    except (OSError, ValueError) as error:  # huggingface_hub raises both: no such name, no network, not allowed
        raise FileNotFoundError(
            f"{config.stage} starts from {config.model}: there is no folder {folder}, and the hub gave none ({error}). "
            f"Train it first, or on a machine with internet: hf download {config.model}"
        ) from error


def check_positions(start: Path | str, config: StageConfig) -> None:
    """Check, from the config of a model alone, that a stage can train it.

    Raises: ValueError if it has no positions, or fewer than a block has tokens.
    """
    shape = shape_of(start).get_text_config()
    if getattr(shape, "max_position_embeddings", None) is None or getattr(shape, "alibi", False):
        raise ValueError(
            f"{start}: the config of a {shape.model_type} model has no max_position_embeddings, or has alibi. Models "
            "without positions (ALiBi, state spaces) cannot keep packed documents apart, and have no limit for the "
            "length of a reply; start from one with positions, such as a Llama, Qwen, Mistral, Gemma or GPT-2"
        )
    check_block(config, positions_of(shape), start)


def loading_arguments(config: StageConfig, arguments: TrainingArguments) -> dict[str, Any]:
    """How the LLM's weights are loaded: type, attention, and fewer bits if adapters train on frozen weights."""
    # DeepSpeed keeps fp32 copies itself, and frozen weights need none; everything else trains in fp32 under autocast.
    # stages/planning/plan.py counts the same.
    half = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else torch.float32
    chosen: dict[str, Any] = {"dtype": half if arguments.deepspeed or config.lora else torch.float32}
    if config.attention == VARLEN:
        check_varlen(half)
    if config.attention != "auto":
        chosen["attn_implementation"] = config.attention
    elif not torch.cuda.is_available():
        chosen["attn_implementation"] = BY_DOCUMENT
    elif half != torch.float32 and torch.cuda.get_device_capability()[0] >= 8 and is_flash_attn_2_available():
        # flash-attention 2 has no fp32, and needs Ampere; varlen is not chosen before it has run on a GPU
        chosen["attn_implementation"] = "flash_attention_2"
    if config.lora and config.lora.bits < 16:
        chosen["quantization_config"] = _quantization(config.lora.bits, half)
    return chosen


def _quantization(bits: int, half: torch.dtype) -> Any:
    """bitsandbytes' settings for frozen weights of 4 or 8 bits.

    Raises: ValueError if bitsandbytes is not installed.
    """
    from transformers import BitsAndBytesConfig
    from transformers.utils import is_bitsandbytes_available

    if not is_bitsandbytes_available():
        raise ValueError(f"lora: bits: {bits} needs bitsandbytes; pip install bitsandbytes, or bits: 16")
    return BitsAndBytesConfig(
        load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=half
    )


def check_varlen(half: torch.dtype) -> None:
    """Check, before the model is loaded, that this machine has what `varlen` needs.

    Raises: ValueError saying what it needs.
    """
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    if capability is None or capability[0] < 8 or half == torch.float32:
        found = "no GPU" if capability is None else f"one of {capability[0]}.{capability[1]}, in {half}"
        raise ValueError(
            f"attention: varlen needs a GPU of compute capability 8.0 (Ampere) or later, and training: bf16 or fp16: "
            "true; "
            f"here is {found}. Use attention: auto"
        )
