"""prosaudit: is a natural pause more likely than an unnatural one? de Seyssel et al., arXiv 2302.12057."""

from __future__ import annotations

from eval.likelihood.folders import split_of
from eval.likelihood.zerospeech import prosody
from eval.measurement import Measurement
from eval.tasks.likelihood.pairs_task import METRIC, both_normalisations, measured
from eval.tasks.task import Outcome, Task


def run(measurement: Measurement) -> Outcome:
    """Means by pair; also by type (lexical, protosyntax)."""
    return measured(measurement, prosody(split_of(measurement.test_set.path, "english", "prosaudit/english")))


TASK = Task(
    "prosaudit",
    run,
    METRIC,
    higher_is_better=True,
    version=1,
    figures=both_normalisations("prosaudit", "a natural pause is more likely"),
    optional=True,
)
