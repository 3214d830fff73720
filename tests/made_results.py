"""A result of an evaluation, as a task returns it."""

from __future__ import annotations

import dataclasses

from eval.metrics import Score
from eval.results import Result


def made_result(**changes) -> Result:
    """A result with some fields changed."""
    result = Result(
        task="asr",
        version=1,
        metric="wer",
        higher_is_better=False,
        listener="the model",
        model="m 1",
        commit="c0ffee",
        codebook="made abc",
        corpus="toy 1",
        machine="abacus, 2 cores",
        device="cpu",
        limit=None,
        n=40,
        score=0.125,
        standard_error=0.02,
        more={"exact": Score(0.5, 0.05, 40), "family/sum": Score(None, None, 0)},
    )
    return dataclasses.replace(result, **changes)
