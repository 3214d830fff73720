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


def counted_logits(model: Any, inputs: Mapping[str, Any], labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits for the counted tokens alone, float (n, V), and these tokens, (n,).

    The output layer is computed at the positions that predict a counted token of any row, which saves most of it where
    the batch is one row or much is not counted.

    Args:
        labels: (B, L), -100 for tokens that are not counted.
    """
    nexts = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    keep = torch.nonzero((nexts != IGNORED).any(0)).flatten()
    chosen = nexts[:, keep]
    logits = model(**inputs, logits_to_keep=keep).logits
    if len(labels) == 1:
        return logits[0].float(), chosen[0]
    counted = chosen != IGNORED
    return logits[counted].float(), chosen[counted]
