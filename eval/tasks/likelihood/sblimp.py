"""sblimp: is a grammatical sentence more likely than an ungrammatical one? ZeroSpeech 2021, arXiv 2011.11588."""

from __future__ import annotations

from eval.likelihood.folders import split_of
from eval.likelihood.zerospeech import syntactic
from eval.measurement import Measurement
from eval.tasks.likelihood.pairs_task import METRIC, both_normalisations, measured
from eval.tasks.task import Outcome, Task


def run(measurement: Measurement) -> Outcome:
    """Means by voice and pair; also by type."""
    return measured(measurement, syntactic(split_of(measurement.test_set.path, "syntactic")))


TASK = Task(
    "sblimp",
    run,
    METRIC,
    higher_is_better=True,
    version=1,
    figures=both_normalisations("sblimp", "a grammatical sentence is more likely"),
    optional=True,
)
