"""Which weights of a stage learn: all, the embedding rows, named parts of the system, or low-rank adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from stages.config import Lora, StageConfig


def choose_trainable(model: Any, config: StageConfig, parts: Mapping[str, tuple[str, ...]]) -> Any:
    """Freeze the weights that the config freezes; with adapters, return a PeftModel.

    Args:
        parts: named parts of the model, each as prefixes of parameter names.

    Raises: ValueError if the config names a part, or a module for adapters, that does not exist.
    """
    if config.lora:
        return add_adapters(model, config.lora)
    if config.trainable == "embeddings":
        learning = embedding_weights(model)
        for weight in model.parameters():
            weight.requires_grad_(id(weight) in learning)
    elif isinstance(config.trainable, list):
        prefixes = prefixes_of(config.trainable, parts)
        for name, weight in model.named_parameters():
            weight.requires_grad_(name.startswith(prefixes))
    return model


def prefixes_of(chosen: Sequence[str], parts: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Prefixes of the parameters of some parts.

    Raises: ValueError naming the parts that exist.
    """
    if unknown := sorted(set(chosen) - parts.keys()):
        raise ValueError(f"trainable: there is no part {', '.join(unknown)}; the parts are {', '.join(sorted(parts))}")
    return tuple(prefix for name in chosen for prefix in parts[name])


def embedding_weights(model: PreTrainedModel) -> set[int]:
    """Identities of the parameters of the input and the output embedding."""
    return {
        id(weight)
        for part in (model.get_input_embeddings(), model.get_output_embeddings())
        if part is not None
        for weight in part.parameters()
    }


def split_groups(groups: Sequence[dict[str, Any]], chosen: set[int], name: str) -> list[dict[str, Any]]:
    """An optimizer's groups, each split into the weights that are not chosen and those that are, by identity.

    Args:
        name: of the entry that says which a group has.
    """
    found = []
    for group in groups:
        for inside in (False, True):
            weights = [weight for weight in group["params"] if (id(weight) in chosen) == inside]
            if weights:
                found.append({**group, "params": weights, name: inside})
    return found


def keep_rows(model: PreTrainedModel, learning: Sequence[int]) -> None:
    """Let no row of the embeddings learn but those of some tokens.

    Args:
        learning: ids of these tokens.
    """
    for part in (model.get_input_embeddings(), model.get_output_embeddings()):
        for weight in () if part is None else part.parameters():
            if weight.requires_grad:
                mask = torch.zeros(len(weight), *[1] * (weight.dim() - 1), dtype=torch.bool, device=weight.device)
                mask[torch.tensor(list(learning), device=weight.device)] = True
                weight.register_hook(lambda gradient, mask=mask: gradient * mask.to(gradient.device))


def add_adapters(model: PreTrainedModel, lora: Lora) -> Any:
    """Low-rank adapters on the modules that the config names; all other weights are frozen.

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
    settings = LoraConfig(
        task_type="CAUSAL_LM", r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.targets
    )
    return get_peft_model(model, settings)
