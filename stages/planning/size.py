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
    the embeddings. notes: assumptions that the plan should report.
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
        total, learning, multiplying, updated, text.num_hidden_layers, text.hidden_size, inner, text.vocab_size, notes
    )
