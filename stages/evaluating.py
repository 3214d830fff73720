"""A model during an evaluation, which may come in the middle of a training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In this context a model is as in use, without dropout; after it, and after any error in it, as it was before."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
