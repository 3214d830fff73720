"""Units laid out in time: one unit id a frame, and the position of each frame within its run.

B batch, U units of a row, N frames (50 a second).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Frames:
    """A padded batch of units laid out in time.

    ids: int64 (B, N), the unit of each frame.
    runs: float32 (B, N, 2), the position of a frame in its run (0 to 1) and the log of the run's length in frames.
    mask: bool (B, N), False in the padding.
    """

    ids: Tensor
    runs: Tensor
    mask: Tensor

    @classmethod
    def lay_out(cls, rows: Sequence[tuple[Tensor, Tensor]], device: torch.device | str = "cpu") -> Frames:
        """Lay out rows of units and pad them to one length.

        Args:
            rows: (ids, durations) of each row, int64 (U,) each.
            device: device of the result.
        """
        pairs = [run_frames(ids, durations) for ids, durations in rows]
        lengths = torch.tensor([len(ids) for ids, _ in pairs])
        ids, runs = (nn.utils.rnn.pad_sequence(list(column), batch_first=True) for column in zip(*pairs))
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        return cls(ids.to(device), runs.to(device), mask.to(device))


def run_frames(ids: Tensor, durations: Tensor) -> tuple[Tensor, Tensor]:
    """Lay out one row of units.

    Args:
        ids: int64 (U,).
        durations: int64 (U,), in frames.

    Returns: the unit of each frame, int64 (N,), and the run features of each frame, float32 (N, 2).
    """
    length = durations.repeat_interleave(durations)
    first = (durations.cumsum(0) - durations).repeat_interleave(durations)
    position = (torch.arange(len(length)) - first + 0.5) / length
    return ids.repeat_interleave(durations), torch.stack([position, length.log()], dim=1)
