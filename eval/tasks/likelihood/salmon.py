"""salmon: does a model find consistent acoustics more likely? Maimon et al., arXiv 2409.07437.

Units that carry no speaker and no background stay near chance by design.
"""

from __future__ import annotations

from eval.likelihood.flat_folders import SALMON_PARTS, salmon
from eval.likelihood.folders import folder_of
from eval.measurement import Measurement
from eval.tasks.likelihood.pairs_task import METRIC, both_normalisations, measured
from eval.tasks.task import Figure, Outcome, Task


def run(measurement: Measurement) -> Outcome:
    """The mean over all pairs; also by part, as the benchmark is published."""
    return measured(measurement, salmon(folder_of(measurement.test_set.path, "salmon_benchmark", "salmon")))


TASK = Task(
    "salmon",
    run,
    METRIC,
    higher_is_better=True,
    version=1,
    figures=(
        *both_normalisations("salmon", "consistent acoustics are more likely"),
        *(Figure(f"salmon_{part}", "... of this part", f"part/{part}", higher_is_better=True) for part in SALMON_PARTS),
    ),
    optional=True,
)
