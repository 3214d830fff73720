"""BLSP's batches: token rows and sounds, and the teacher's rows.

B blocks of a batch, L tokens of a block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stages.packing.attention import bounds
from stages.packing.blocks import IGNORED
from units.audio import FrameGrid
from units.dataset.feature_set import FeatureSet
from variants.speech_in import batch
from variants.speech_in.batch import Block, joined, lengths_of


def collate(
    blocks: list[Block], one_row: bool, with_bounds: bool, grid: FrameGrid, features: FeatureSet | None = None
) -> dict[str, Any]:
    """As variants.speech_in.batch.collate; with a teacher, also teacher_ids, teacher_labels and teacher_positions."""
    made = batch.collate(blocks, one_row, with_bounds, grid, features)
    if "teacher" in blocks[0]:
        made |= _teachers(blocks, joined if one_row else torch.stack, with_bounds)
    return made


def _teachers(blocks: list[Block], join: Any, with_bounds: bool) -> dict[str, Any]:
    """The teacher's documents of each block, padded to one length at the end."""
    longest = max(len(block["teacher"]) for block in blocks)
    rows = [_teacher(block, longest) for block in blocks]
    ids, labels, positions = (join(list(column)) for column in zip(*rows))
    found: dict[str, Any] = {"teacher_ids": ids, "teacher_labels": labels, "teacher_positions": positions}
    return found | ({f"teacher_{name}": part for name, part in bounds(positions).items()} if with_bounds else {})


def _teacher(block: Block, length: int) -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.zeros(length, dtype=torch.int64)
    labels, positions = torch.full_like(ids, IGNORED), torch.empty_like(ids)
    count = len(block["teacher"])
    ids[:count] = block["teacher"]
    labels[:count] = torch.where(block["teacher_train"], block["teacher"].long(), IGNORED)
    at = 0
    for size in lengths_of(block["teacher_start"]):
        positions[at : at + size] = torch.arange(size)
        labels[at] = IGNORED
        at += size
    positions[at:] = torch.arange(length - at)
    return ids, labels, positions
