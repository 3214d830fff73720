"""Connectionist temporal classification: units out of frames, and the loss that aligns them (Graves et al. 2006).

    frames of the decoder   3 3 _ 3 7 7 _     (_ is the blank)
    units                   3 3 7             repeats merged, then blanks dropped

S answers of a batch, A tokens of an answer, U frames, K units of the codebook; the blank is K.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional


def collapse(frames: Iterable[int], blank: int) -> list[int]:
    """Units of the most likely symbol of each frame: repeats are merged, then blanks dropped."""
    return CtcStream(blank).push(frames)


class CtcStream:
    """`collapse`, some frames at a time: all units together are those of all frames."""

    def __init__(self, blank: int) -> None:
        self.blank = blank
        self._last: int | None = None

    def push(self, frames: Iterable[int]) -> list[int]:
        """The units that further frames add."""
        found = []
        for frame in frames:
            if frame != self._last and frame != self.blank:
                found.append(frame)
            self._last = frame
        return found


def frames_needed(units: Sequence[int]) -> int:
    """The fewest frames that units can be aligned to: one each, and a blank between two that are equal."""
    return len(units) + sum(one == other for one, other in zip(units, units[1:]))


def frames_of(tokens: int, units: Sequence[int], upsample: int) -> int:
    """Frames of an answer in training: `upsample` a token, and more where its units would not fit.

    Upstream does not count equal neighbours: such targets get no gradient there, and their length still divides.
    """
    return max(upsample * tokens, frames_needed(units))


def spread(tokens: int, frames: int) -> Tensor:
    """The token of each frame, int64 (frames,): tokens are spread evenly, as upstream rounds them, in float32."""
    step = torch.tensor(frames, dtype=torch.float32) / torch.tensor(tokens, dtype=torch.float32)
    places = torch.arange(frames, dtype=torch.float32) / step
    return places.long().clamp(max=tokens - 1)


def ctc_loss(logits: Tensor, frames: Tensor, units: Tensor, counts: Tensor) -> Tensor:
    """The summed loss of some answers, in float32.

    Args:
        logits: (S, U, K + 1), padded at the end. frames: int64 (S,), how many of each answer's are its own.
        units: int64 (sum of counts,), the targets end to end. counts: int64 (S,).
    """
    scores = functional.log_softmax(logits.float(), dim=-1).transpose(0, 1)
    blank = logits.shape[-1] - 1
    return functional.ctc_loss(scores, units, frames, counts, blank, reduction="sum", zero_infinity=True)
