"""Spoken and topic StoryCloze: is the right ending of a story more likely? Hassid et al., arXiv 2305.13009."""

from __future__ import annotations

from functools import partial

from eval.likelihood.flat_folders import stories
from eval.likelihood.folders import folder_of
from eval.measurement import Measurement
from eval.tasks.likelihood.pairs_task import METRIC, both_normalisations, measured
from eval.tasks.task import Outcome, Task

FOLDERS = {"sstorycloze": ("sStoryCloze", "sSC"), "tstorycloze": ("tStoryCloze", "tSC")}


def run(measurement: Measurement, name: str) -> Outcome:
    """The whole recording of each ending is scored.

    Args:
        name: of the task, one of FOLDERS.
    """
    return measured(measurement, stories(folder_of(measurement.test_set.path, *FOLDERS[name]), name))


def _task(name: str, meaning: str) -> Task:
    figures = both_normalisations(name, meaning)
    return Task(name, partial(run, name=name), METRIC, higher_is_better=True, version=1, figures=figures, optional=True)


SPOKEN = _task("sstorycloze", "the right ending of a story is more likely")
TOPIC = _task("tstorycloze", "an ending on the story's topic is more likely")
