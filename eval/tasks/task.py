"""Task: what is measured, how it is scored, and where its figures stand in the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from eval.metrics import Score

if TYPE_CHECKING:
    from eval.measurement import Measurement
    from eval.test_set import TestItem

THE_MODEL = "the model"  # the listener of tasks in which the model itself transcribes
NO_LISTENER = "-"


@dataclass(frozen=True)
class Beside:
    """A figure to compare with: its task, its key in Result.more ("" is the main figure), and what to call it."""

    task: str
    key: str
    name: str


ASR_SAME_RECORDINGS = Beside("originals", "", "the evaluation ASR on the same recordings")
ASR_NEW_VOICE = Beside("originals", "wer_new_voice", "the evaluation ASR on the same recordings")
ASR_ANSWER_VOICE = Beside("originals", "wer_answer_voice", "the evaluation ASR on the answer voice itself")


@dataclass(frozen=True)
class Figure:
    """One row of the report.

    name: of the row; also its key in the summary line. meaning: for a reader.
    key: in Result.more; "" is the task's main figure.
    unit: "%" for a share (shown times 100), or what the figure is counted in.
    higher_is_better: None where neither way is better.
    headline: whether it is a card at the top of the report, and in the summary line.
    """

    name: str
    meaning: str
    key: str = ""
    unit: str = "%"
    higher_is_better: bool | None = False
    beside: Beside | None = None
    headline: bool = False


@dataclass(frozen=True)
class FamilyColumn:
    """One column of the report's table by family. prefix: of the keys in Result.more, before the family's name."""

    title: str
    prefix: str = "family/"


@dataclass(frozen=True)
class Outcome:
    """The result of a task.

    score: the main figure. details: one record per example.
    listener: who transcribed the speech: the evaluation ASR's name, "the model", or "-".
    more: further figures by name.
    """

    score: Score
    details: list[dict]
    listener: str
    more: dict[str, Score] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A task: a function of a Measurement, and how its figures are read.

    run: measures. It raises NotMeasured or NotSupported for what the test set or the model lacks.
    metric: of the main figure, such as "wer".
    version: raised when the meaning of a figure changes, so that old results are measured again.
    figures: its rows in the report. families: its columns in the report's table by family.
    optional: whether its rows are left out of the report where it did not run.
    asked: whether it runs only if it is named, because it takes time that few want to spend.
    listener: names who scores, where that is neither the evaluation ASR nor the judge; it raises NotMeasured where
        that is not installed.
    """

    name: str
    run: Callable[[Measurement], Outcome]
    metric: str
    higher_is_better: bool
    version: int
    figures: tuple[Figure, ...] = ()
    families: tuple[FamilyColumn, ...] = ()
    optional: bool = False
    asked: bool = False
    listener: Callable[[Measurement], str] | None = None


def detail(item: TestItem, **found: str | None) -> dict:
    """The record of one example in TASK.details.jsonl."""
    return {
        "id": item.id,
        "speaker": item.speaker,
        "family": item.family,
        "question": item.question,
        "gold": item.gold,
        **found,
    }
