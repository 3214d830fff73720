"""The numbers of a model that a plan needs, counted on a model without memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.config import StageConfig
from stages.planning.hardware import multiplying_parameters
from stages.trainable import prefixes_of


@dataclass(frozen=True)
class Size:
    """A model by its numbers.

    learning: parameters that are trained. multiplying: those that take part in matrix products; updated: those of them
    that are trained. layers, hidden, inner, rows: of the LLM: layers, width, width of the feed-forward layers, rows of
    the embeddings. notes: assumptions that the plan should report. positions: that a document may have; None for a
    model without a limit.
    """

    parameters: int
    learning: int
    multiplying: int
    updated: int
    layers: int
    hidden: int
    inner: int
    rows: int
    notes: tuple[str, ...] = ()
    positions: int | None = None


def positions_of(shape: Any) -> int | None:
    """How many positions a model has, from its config; None if it has no limit.

    RoPE that is scaled reaches further: `linear`, `dynamic` and `yarn` by their factor times the original positions;
    where max_position_embeddings is the scaled length already (llama3, longrope), it is the larger number.
    """
    text = shape.get_text_config()
    most = getattr(text, "max_position_embeddings", None)
    if not isinstance(most, int):
        return None
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    for scaling in (rope, *rope.values()):  # one for all layers, or one for each kind of layer
        factor = scaling.get("factor") if isinstance(scaling, dict) else None
        if isinstance(factor, (int, float)) and factor > 1:
            original = scaling.get("original_max_position_embeddings") or text.max_position_embeddings
            most = max(most, int(factor * original))
    return most


def check_block(config: StageConfig, positions: int | None, model: Any) -> None:
    """Raise ValueError if a block has more tokens than the model has positions."""
    if positions is not None and config.block_size > positions:
        raise ValueError(
            f"block_size is {config.block_size}, but {model} has {positions} positions (max_position_embeddings, with "
            f"its RoPE scaling): set block_size to at most {positions}, or start from a model of a longer context"
        )


def count(
    model: Any, shape: Any, config: StageConfig, parts: Mapping[str, tuple[str, ...]], notes: tuple[str, ...] = ()
) -> Size:
    """Count a model, of which the weights may be without memory (torch's meta device).

    Args:
        shape: config of the LLM in the model.
        parts: named parts of the model, each as prefixes of parameter names.

    Raises: ValueError if the config trains a part that does not exist.
    """
    total = model.num_parameters()
    multiplying = multiplying_parameters(model)
    learning, updated = total, multiplying
    if config.lora:
        learning = updated = sum(
            config.lora.r * sum(module.weight.shape)
            for name, module in model.named_modules()
            if name.rpartition(".")[2] in config.lora.targets
        )
    elif config.trainable == "embeddings":
        head = model.get_output_embeddings().weight
        matrices = {id(weight): weight.numel() for weight in (model.get_input_embeddings().weight, head)}
        learning, updated = sum(matrices.values()), head.numel()
    elif isinstance(config.trainable, list):
        prefixes = prefixes_of(config.trainable, parts)
        for name, weight in model.named_parameters():
            weight.requires_grad_(name.startswith(prefixes))
        learning = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        updated = multiplying_parameters(model, learning=True)
    text = shape.get_text_config()
    inner = getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 4 * text.hidden_size
    return Size(
        total,
        learning,
        multiplying,
        updated,
        text.num_hidden_layers,
        text.hidden_size,
        inner,
        text.vocab_size,
        notes,
        positions_of(shape),
    )
