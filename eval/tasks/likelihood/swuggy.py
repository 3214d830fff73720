"""swuggy: is a spoken word more likely than a spoken non-word? ZeroSpeech 2021, Nguyen et al., arXiv 2011.11588."""

from __future__ import annotations

from eval.likelihood.folders import split_of
from eval.likelihood.zerospeech import lexical
from eval.measurement import Measurement
from eval.tasks.likelihood.pairs_task import METRIC, both_normalisations, measured
from eval.tasks.task import Figure, Outcome, Task


def run(measurement: Measurement) -> Outcome:
    """Means by voice and id; also by frequency in LibriSpeech and by length."""
    return measured(measurement, lexical(split_of(measurement.test_set.path, "lexical")))


TASK = Task(
    "swuggy",
    run,
    METRIC,
    higher_is_better=True,
    version=1,
    figures=(
        *both_normalisations("swuggy", "a word is more likely than a non-word"),
        Figure("swuggy_in_vocabulary", "... words in LibriSpeech", "frequency/in_vocabulary", higher_is_better=True),
        Figure("swuggy_oov", "... words outside LibriSpeech", "frequency/oov", higher_is_better=True),
    ),
    optional=True,
)
