"""Where a stage starts: the model before it, opened, checked, widened, and told which of its weights learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.utils import is_flash_attn_2_available

from speechgpt.chat_template import tell_servers
from speechgpt.checkpoint import CheckpointFacts
from speechgpt.vocab import UnitVocab
from speechgpt.widen import widen
from stages.attention import BY_DOCUMENT, VARLEN, bounds, takes_bounds
from stages.config import Lora, StageConfig
from units.codebook import Codebook
from units.encoder.kmeans import load_centres

TEXT_STAGE = "text"
OUR_FOLDERS = ("text_llm_untrained", "text_llm", "stage1", "stage2", "stage3")  # in a run folder; never hub ids


def find_start(config: StageConfig) -> Path | str:
    """Folder, or hub id, of the model that the stage starts from.

    Where the stage needs to know the units that the model has, the hub's folder is fetched: only `speechgpt.json`, which
    transformers does not look for, says which they are.

    Raises: FileNotFoundError, naming what to train first, when a folder of this run is missing or not finished, or when the
        hub has none of this name.
    """
    folder = config.at(config.model)
    if (folder / "config.json").exists():
        return folder
    if folder.is_dir() or config.model in OUR_FOLDERS or Path(config.model).is_absolute():
        state = "is not finished (no config.json)" if folder.is_dir() else "is not there"
        raise FileNotFoundError(f"{folder} {state}: {config.stage} starts from it, so train {config.model} first")
    if not has_units(config):
        return config.model
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(config.model))
    except (OSError, ValueError) as error:  # huggingface_hub's are both: no such name, no network, not allowed
        raise FileNotFoundError(
            f"{config.stage} starts from {config.model}: there is no folder {folder}, and the hub gave none ({error}). "
            f"Train it first, or on a machine with internet: hf download {config.model}"
        ) from error


def has_units(config: StageConfig) -> bool:
    """Whether the model that the stage starts from has units already."""
    return config.widen is None and config.stage != TEXT_STAGE


def open_units(encoder: Path) -> tuple[Codebook, torch.Tensor]:
    """Codebook and centres, float (K, D), of the unit encoder that a stage widens its model by.

    Raises: FileNotFoundError saying how an encoder is made.
    """
    for name in ("codebook.json", "centres.safetensors"):
        if not (encoder / name).exists():
            raise FileNotFoundError(
                f"{encoder} has no {name}, and the model is widened by the units of this unit encoder; copy the one there "
                f"that made your units, or fit one: python -m units.encoder.fit --manifest AUDIO --out {encoder}"
            )
    return Codebook.load(encoder / "codebook.json"), load_centres(encoder / "centres.safetensors")


def check_positions(start: Path | str) -> None:
    """Raise ValueError if a model is of a kind that no stage can train, before anything of it but its config is read."""
    shape = AutoConfig.from_pretrained(start).get_text_config()
    if getattr(shape, "max_position_embeddings", None) is None:
        raise ValueError(
            f"{start}: the config of a {shape.model_type} model has no max_position_embeddings. Models that count no positions "
            "(ALiBi, state spaces) cannot keep packed documents apart, nor say how long a reply may be; start from one that "
            "does, such as a Llama, Qwen, Mistral, Gemma or GPT-2"
        )


def open_start(config: StageConfig, **loading: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Codebook | None]:
    """Tokenizer and model that the stage starts from, widened if it says so, and the codebook of their units.

    Args:
        loading: for AutoModelForCausalLM.from_pretrained.

    Raises: FileNotFoundError or ValueError when the start is not what this stage needs.
    """
    # first, as it takes no time, and the model minutes
    units = open_units(config.at(config.widen.encoder)) if config.widen else None
    start = find_start(config)
    check_positions(start)
    facts = CheckpointFacts.load(start) if has_units(config) else None
    tokenizer = AutoTokenizer.from_pretrained(start)
    if facts:
        facts.check_vocab(UnitVocab.from_words(tokenizer.get_vocab()), start)
    model = AutoModelForCausalLM.from_pretrained(start, **loading)
    codebook = facts.codebook if facts else None
    if config.widen and units:
        codebook, centres = units
        widen(tokenizer, model, codebook.size, config.widen.init, centres, config.seed)
    if codebook:
        tell_servers(tokenizer, model, config.prefix)
    return model, tokenizer, codebook


def loading_arguments(config: StageConfig, arguments: TrainingArguments) -> dict[str, Any]:
    """How the weights are loaded: their type, their attention, and fewer bits if adapters train on them."""
    # DeepSpeed keeps fp32 copies of its own, and frozen weights need none; everything else trains in fp32 under autocast.
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
        # flash-attention 2 refuses fp32, and GPUs before Ampere. varlen would need nothing installed, and is not chosen
        # before it has run on a GPU
        chosen["attn_implementation"] = "flash_attention_2"
    if config.lora and config.lora.bits < 16:
        from transformers import BitsAndBytesConfig
        from transformers.utils import is_bitsandbytes_available

        if not is_bitsandbytes_available():
            raise ValueError(
                f"lora: bits: {config.lora.bits} needs bitsandbytes; pip install bitsandbytes, or bits: 16"
            )
        chosen["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=config.lora.bits == 4, load_in_8bit=config.lora.bits == 8, bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=half,
        )  # fmt: skip
    return chosen


def check_varlen(half: torch.dtype) -> None:
    """Look at whether this machine can attend by `varlen`, before the model is loaded.

    Raises: ValueError saying what it takes.
    """
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    if capability is None or capability[0] < 8 or half == torch.float32:
        found = "no GPU" if capability is None else f"one of {capability[0]}.{capability[1]}, in {half}"
        raise ValueError(
            f"attention: varlen needs a GPU of compute capability 8.0 (Ampere) or later, and training: bf16 or fp16: true; "
            f"here is {found}. Take attention: auto"
        )


def choose_trainable(model: PreTrainedModel, config: StageConfig) -> Any:
    """The model with the weights frozen that the config freezes; with adapters, a PeftModel."""
    if config.lora:
        return add_adapters(model, config.lora)
    if config.trainable == "embeddings":
        learning = embedding_weights(model)
        for weight in model.parameters():
            weight.requires_grad_(id(weight) in learning)
    return model


def embedding_weights(model: PreTrainedModel) -> set[int]:
    """Identities of the parameters of the embedding matrices, the one that reads and the one that writes."""
    return {id(weight) for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part is not None
            for weight in part.parameters()}  # fmt: skip


def add_adapters(model: PreTrainedModel, lora: Lora) -> Any:
    """Low-rank adapters on the modules that the config names; everything else is frozen.

    Raises: ValueError, listing the model's modules, if it has none of these names.
    """
    from peft import LoraConfig, get_peft_model

    names = {name.rpartition(".")[2] for name, module in model.named_modules() if hasattr(module, "weight")}
    missing = set(lora.targets) - names
    if missing:
        raise ValueError(f"lora: targets: the model has no {sorted(missing)}; its modules are {sorted(names)}")
    if lora.bits < 16:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.targets,
        ),
    )


@torch.no_grad()
def check_packing(model: PreTrainedModel) -> None:
    """Look at whether documents packed into one block stay strangers: change the first, and the second must not notice.

    Raises: ValueError if it does. Then this architecture, or its attention, does not look at position_ids.
    """
    training, device = model.training, model.device
    model.eval()
    half = 8
    positions = torch.arange(half, device=device).repeat(2)[None]
    packed = bounds(positions) if takes_bounds(model) else {}
    scores = []
    for first in (1, 2):
        ids = torch.cat([torch.full((half,), first), torch.arange(3, 3 + half)])[None].to(device)
        output = model(input_ids=ids, position_ids=positions, use_cache=False, **packed)
        scores.append(output.logits[0, half:].float())
    model.train(training)
    leak = (scores[0] - scores[1]).abs().max().item()
    if leak > 1e-3 * scores[0].abs().max().item():
        raise ValueError(
            f"{type(model).__name__} with {model.config._attn_implementation} attention lets packed documents see one "
            f"another (logits move by {leak:.2g}); choose another attention: sdpa or eager, or another model"
        )


class PackingCheck(TrainerCallback):
    """Runs check_packing before the first step. With attention: auto, a model that by_document does not fit gets sdpa."""

    def __init__(self, attention: str) -> None:
        self.attention = attention

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model=None, **kwargs
    ) -> None:
        try:
            check_packing(model)
        except ValueError:
            if self.attention != "auto" or model.config._attn_implementation != BY_DOCUMENT:
                raise
            model.set_attn_implementation("sdpa")
            check_packing(model)
