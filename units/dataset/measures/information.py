"""Formulae of unit quality: entropy, mutual information, purity, edit distance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def entropy(counts: np.ndarray) -> float:
    """Entropy in bits of the distribution that counts (of any shape) stand for; 0 of nothing."""
    p = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(p * np.log2(p)).sum()) + 0.0


def mutual_information(joint: np.ndarray) -> float:
    """I(row; column) in bits of joint counts (Y, K)."""
    return max(0.0, entropy(joint.sum(1)) + entropy(joint.sum(0)) - entropy(joint))


def purities(joint: np.ndarray) -> tuple[float, float]:
    """Phone purity and cluster purity of joint counts (Y labels, K units), equations 8 and 9 of arXiv 2106.07447."""
    return float(joint.max(0).sum() / joint.sum()), float(joint.max(1).sum() / joint.sum())


def edit_distance(one: Sequence[int], two: Sequence[int]) -> int:
    """Levenshtein distance of two sequences of units, a row of the table at a time."""
    steps = np.arange(len(two) + 1)
    row, other = steps, np.asarray(two)
    for i, unit in enumerate(one, 1):
        changed = np.minimum(row[1:] + 1, row[:-1] + (other != unit))
        # An insertion costs 1 more than the cell to the left: a running minimum once that slope is taken off.
        row = np.minimum.accumulate(np.concatenate([[i], changed]) - steps) + steps
    return int(row[-1])
