"""What the tasks with instructions share: the model's responses to the rows of instructed.jsonl."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval.instructed import FILE, Instructed, instructed
from eval.measurement import Measurement
from eval.model import AdaptedModel
from eval.test_set import NotMeasured, spread
from speechgpt.answers import FollowsInstructions


def responses(measurement: Measurement, kind: str) -> tuple[list[Instructed], list[str]]:
    """The rows that have a `kind` (translation, label), and the model's responses; "" for a recording that it refuses.

    Raises:
        NotMeasured: no row has one, or the model follows no instructions on recordings.
    """
    rows = [row for row in instructed(measurement.test_set) if getattr(row, kind) is not None]
    if not rows:
        raise NotMeasured(f"no row of {measurement.test_set.file(FILE)} has a {kind}")
    rows = spread(rows, measurement.test_set.limit)
    model = follower(measurement)
    found: dict[str, str] = {}
    for instruction in dict.fromkeys(row.instruction for row in rows):  # a batch has one instruction
        some = [row.item for row in rows if row.instruction == instruction]

        def respond(wavs: Sequence[np.ndarray], instruction: str = instruction) -> list[str]:
            sounds = measurement.for_model(wavs)
            return model.respond_batch(sounds, [instruction] * len(sounds), measurement.sampling)

        replies = measurement.over_wavs(respond, some, kind, "")
        found |= {item.id: reply for item, reply in zip(some, replies)}
    return rows, [found[row.item.id] for row in rows]


def follower(measurement: Measurement) -> FollowsInstructions:
    """The model as one that follows instructions on recordings. Raises NotMeasured if it does not."""
    model = measurement.model.model if isinstance(measurement.model, AdaptedModel) else measurement.model
    if not isinstance(model, FollowsInstructions):
        raise NotMeasured(f"the model {measurement.model.name} follows no instructions (no `respond_batch`)")
    return model
