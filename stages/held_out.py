"""Evaluation on held-out documents: losses by task and by kind of token, and documents for sample replies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from stages.evaluating import evaluating
from stages.packing.attention import bounds, takes_bounds
from stages.packing.blocks import PackedBlocks

SOME_BLOCKS = 16  # of an evaluation during training; the last evaluation uses all blocks

Kinds = Callable[[Tensor], dict[str, Tensor]]
Logits = Callable[[Any, dict[str, Tensor]], Tensor]


def spread_out(count: int, most: int) -> list[int]:
    """Numbers of at most `most` of so many blocks, evenly spaced: packing puts documents of alike lengths together."""
    most = min(most, count)
    return [i * count // most for i in range(most)]


def logits_of(model: Any, block: dict[str, Tensor]) -> Tensor:
    """Logits (1, L, V) of one packed block."""
    packed = bounds(block["position_ids"]) if takes_bounds(model) else {}
    packed = {name: part.to(model.device) if isinstance(part, Tensor) else part for name, part in packed.items()}
    rows = {name: block[name][None].to(model.device) for name in ("input_ids", "position_ids")}
    # with a cache, transformers would not detect packed documents, and they would attend to each other
    return model(**rows, use_cache=False, **packed).logits


@torch.no_grad()
def token_losses(model: Any, block: dict[str, Tensor], logits: Logits = logits_of) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy and correctness of each counted token of one block, and the tokens themselves.

    Args:
        logits: computes the logits (1, L, V) of a block.
    """
    scores = logits(model, block)[:, :-1].float()
    labels = block["labels"][None, 1:].to(scores.device)
    counted = labels >= 0
    losses = torch.nn.functional.cross_entropy(scores[counted], labels[counted], reduction="none")
    return losses, scores[counted].argmax(-1) == labels[counted], labels[counted]


@torch.no_grad()
def held_out_report(
    model: Any, held_out: PackedBlocks, chosen: Sequence[int], kinds: Kinds, logits: Logits = logits_of
) -> dict[str, float]:
    """Loss, perplexity and token accuracy on some held-out blocks, for each kind of token.

    Args:
        chosen: numbers of the blocks.
        kinds: of the counted tokens (n,): kind -> bool (n,), such as {"text": ..., "units": ...}.
        logits: computes the logits (1, L, V) of a block.

    Returns: figures over all documents (`dev_text_loss`), and, if there are several tasks, of each (`asr/text_loss`).
    """
    with evaluating(model):
        parts = [token_losses(model, held_out[i], logits) for i in chosen]
    losses, hits, tokens = (torch.cat(column) for column in zip(*parts))
    tasks = torch.cat([held_out.tasks(i)[1:][held_out[i]["labels"][1:] >= 0] for i in chosen]).to(tokens.device)
    groups = {"dev_": torch.ones_like(hits)}
    if len(held_out.task_names) > 1:
        groups |= {f"{name}/": tasks == index for index, name in enumerate(held_out.task_names)}
    report: dict[str, float] = {}
    for group, inside in groups.items():
        for name, kind in kinds(tokens).items():
            among = inside & kind
            if among.any():
                loss = losses[among].mean().item()
                report |= {
                    f"{group}{name}_loss": round(loss, 4),
                    f"{group}{name}_ppl": round(math.exp(min(loss, 50)), 3),
                    f"{group}{name}_accuracy": round(hits[among].float().mean().item(), 4),
                }
    return report


def sample_documents(held_out: PackedBlocks, count: int) -> list[tuple[str, int, int]]:
    """(task, source, document) of some held-out documents, each of another task if there are several."""
    documents = {document for i in range(min(SOME_BLOCKS, len(held_out))) for document in held_out.documents_of(i)}
    by_task: dict[str, list[tuple[int, int]]] = {}
    for source, document in sorted(documents):
        tokenised = held_out.sources[source]
        by_task.setdefault(tokenised.task_names[tokenised.tasks[document]], []).append((source, document))
    queue = [(task, *found[i]) for i in range(count) for task, found in sorted(by_task.items()) if i < len(found)]
    return queue[:count]
