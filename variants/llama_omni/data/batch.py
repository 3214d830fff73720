"""Batches of the speech decoder's stage: token rows, sounds, and the answers in them.

B blocks of a batch, L tokens of a block, S answers.
"""

from __future__ import annotations

from typing import Any

import torch

from units.audio import FrameGrid
from units.dataset.feature_set import FeatureSet
from variants.speech_in import batch
from variants.speech_in.batch import Block, lengths_of


def collate(
    blocks: list[Block], one_row: bool, with_bounds: bool, grid: FrameGrid, features: FeatureSet | None = None
) -> dict[str, Any]:
    """As variants.speech_in.batch.collate, and the answers of all blocks, one after the other.

    Returns: also said, int64 (n,), places of the answers' tokens counted over all rows; said_lengths, int64 (S,);
        units, int64, the targets end to end; unit_counts, int64 (S,).
    """
    made = batch.collate(blocks, one_row, with_bounds, grid, features)
    length = len(blocks[0]["input_ids"])
    lengths: list[int] = []
    counts: list[int] = []
    for block in blocks:
        lengths += lengths_of(block["said_start"])
        counts += lengths_of(block["units_start"])
    made["said"] = torch.cat(
        [block["said"] + block["said_start"] + number * length for number, block in enumerate(blocks)]
    )
    made["units"] = torch.cat([block["units"] for block in blocks]).long()
    return made | {"said_lengths": torch.tensor(lengths), "unit_counts": torch.tensor(counts)}
