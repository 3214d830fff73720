"""Low-rank adapters on the LLM alone, beside an adaptor that learns whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from stages.config import Lora

INNER = "llm.base_model.model."  # of the names of weights in a wrapped LLM


def with_lora(llm: Any, lora: Lora) -> Any:
    """The LLM with adapters.

    Raises: ValueError, listing the LLM's modules, if it has none of the names in the config.
    """
    from stages.trainable import add_adapters

    return add_adapters(llm, lora)


def lora_names(model: Any) -> tuple[str, ...]:
    """Names of the adapters' weights in a model, for `trainable`."""
    return tuple(name for name, _ in model.named_parameters() if "lora_" in name)


@contextmanager
def without_lora(model: Any, weights: dict[str, Tensor]) -> Iterator[tuple[Any, dict[str, Tensor]]]:
    """The LLM with its adapters merged into it, and its weights under the names of a plain LLM.

    Args:
        model: whose `llm` is wrapped. weights: of the whole model, as they are gathered.
    """
    model.llm.merge_adapter()
    try:
        found = {}
        for name, weight in model.state_dict().items():
            if name.startswith(INNER) and "lora_" not in name:
                found[name.removeprefix(INNER).replace(".base_layer.", ".")] = weight
        yield model.llm.get_base_model(), found
    finally:
        model.llm.unmerge_adapter()
