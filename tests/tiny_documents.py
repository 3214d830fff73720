"""Tokenised documents written by hand, and blocks packed from them."""

from __future__ import annotations

import numpy as np

from stages.packing.blocks import PackedBlocks
from stages.packing.tokens import Tokenised


def flat(*documents: list[int], train: list[list[bool]] | None = None) -> Tokenised:
    lengths = np.array([len(d) for d in documents])
    mask = [True] * sum(lengths) if train is None else sum(train, [])
    hashes = np.random.default_rng(7).integers(2**64, size=len(documents), dtype=np.uint64)
    return Tokenised(
        np.array(sum(documents, [])),
        np.array(mask),
        np.cumsum(lengths) - lengths,
        lengths,
        np.zeros(len(documents), int),
        hashes,
        ["any"],
    )


def pack(tokenised: Tokenised, size: int, blocks: int, seed: int = 0, window: int = 8) -> PackedBlocks:
    return PackedBlocks([(tokenised, np.arange(len(tokenised)), 1.0)], size, blocks, 0, seed, window)
