"""Logits at the tokens that the loss counts, and at no others.

B blocks of a batch, L tokens of a block, V words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from stages.packing.blocks import IGNORED

STEP = 64  # the output layer is computed at a multiple of it: on CPUs a matrix product is compiled for each new size


def counted_logits(model: Any, inputs: Mapping[str, Any], labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits for the counted tokens alone, float (n, V), and these tokens, (n,).

    The output layer is computed at the positions that predict a counted token of any row, which saves most of it where
    the batch is one row or much is not counted.

    Args:
        labels: (B, L), -100 for tokens that are not counted.
    """
    nexts = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    some = (nexts != IGNORED).any(0)
    keep = torch.nonzero(some).flatten()
    count, length = len(keep), len(some)
    size = -(-count // STEP) * STEP
    if size < length:
        others = torch.nonzero(~some).flatten()[: size - count]
        logits = model(**inputs, logits_to_keep=torch.cat([keep, others])).logits
    else:
        logits = model(**inputs).logits
    logits = logits[:, keep] if logits.shape[1] == length else logits[:, :count]  # some models know no logits_to_keep
    chosen = nexts[:, keep]
    if len(labels) == 1:
        return logits[0].float(), chosen[0]
    counted = chosen != IGNORED
    return logits[counted].float(), chosen[counted]
