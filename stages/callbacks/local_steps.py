"""Local SGD: each process learns alone, and every so many steps all of them average what they have learned.

Gradients that are averaged in each step make every process wait for the slowest one, each time. On the cores of one
machine, which other work slows now here and now there, that takes a fifth of the time (docs/decisions/local-steps.md).

Source: Stich 2019, Local SGD Converges Fast and Communicates Little, arXiv 1805.09767. Adam's moments are averaged too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

BUCKET = 1 << 25  # bytes that are sent at once


class LocalSteps(TrainerCallback):
    """Averages weights and the optimizer's moments over the processes every `steps` steps, and before each evaluation,
    checkpoint and end; so a checkpoint holds the state of all processes.

    The trainer leaves the gradients of each process as they are.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kw) -> None:
        is_seen = control.should_save or control.should_evaluate or control.should_training_stop
        if args.world_size > 1 and (is_seen or state.global_step % self.steps == 0):
            average(learned(model, getattr(optimizer, "optimizer", optimizer)))


def learned(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """The weights that learn, and what the optimizer keeps of each, in the same order in every process."""
    for weight in model.parameters():
        if weight.requires_grad:
            yield weight.data
            kept = optimizer.state.get(weight, {})
            yield from (kept[name] for name in sorted(kept) if kept[name].shape == weight.shape)


def average(tensors: Iterator[Tensor]) -> None:
    """Replace each tensor by its mean over the processes."""
    for bucket in buckets(tensors):
        flat = torch.cat([tensor.flatten() for tensor in bucket])
        torch.distributed.all_reduce(flat)
        flat /= torch.distributed.get_world_size()
        for tensor, mean in zip(bucket, flat.split([tensor.numel() for tensor in bucket])):
            tensor.copy_(mean.view_as(tensor))


def buckets(tensors: Iterator[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type and at most BUCKET bytes together: many small messages take far longer than a large one."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        full = sum(one.nbytes for one in bucket) + tensor.nbytes > BUCKET
        if bucket and (full or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
