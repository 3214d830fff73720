"""The figures of the report as plain rows. A figure that was not measured is shown as "not run"."""

from __future__ import annotations

from dataclasses import dataclass

from eval.metrics import Score
from eval.results import Result
from eval.tasks import TASKS
from eval.tasks.task import Beside, FamilyColumn, Figure

NOT_RUN = "not run"
SHARE = "%"  # the unit of figures that are shown times 100
_ORIGINALS = Beside("resynthesis", "wer_original", "the evaluation ASR on the original recordings")
# eval.resynthesis is a command of its own and no task of eval.run.
RESYNTHESIS = (
    Figure("resynth_wer", "units to speech, durations predicted", beside=_ORIGINALS, headline=True),
    Figure("resynth_true_wer", "units to speech, true durations", "wer_true", beside=_ORIGINALS),
)
FIGURES: tuple[tuple[str, Figure], ...] = (
    *((task.name, figure) for task in TASKS for figure in task.figures),
    *(("resynthesis", figure) for figure in RESYNTHESIS),
)
OPTIONAL = {task.name for task in TASKS if task.optional}
FAMILY_COLUMNS: tuple[tuple[str, FamilyColumn], ...] = tuple(
    (task.name, column) for task in TASKS for column in task.families
)


@dataclass(frozen=True)
class Row:
    """One figure of the report, measured or not. beside: the figure to compare it with, if that was measured."""

    figure: Figure
    score: Score | None
    beside: Score | None

    @property
    def better(self) -> str:
        """Which way is better: "higher", "lower" or "" for neither."""
        return {True: "higher", False: "lower", None: ""}[self.figure.higher_is_better]

    @property
    def value(self) -> str:
        """The figure, such as "12.3 %"."""
        return show(self.score, self.figure.unit)

    @property
    def value_with_error(self) -> str:
        """The figure and its standard error, such as "12.3 ± 1.1 %"."""
        return show(self.score, self.figure.unit, error=True)

    @property
    def error(self) -> str:
        """The standard error alone, such as "± 1.1 %"; "" where it is unknown."""
        if self.score is None or self.score.standard_error is None:
            return ""
        return f"± {_scaled(self.score.standard_error, self.figure.unit)} {self.figure.unit}"

    @property
    def n(self) -> str:
        """The number of examples; "" if the figure was not measured."""
        return str(self.score.n) if self.score else ""

    @property
    def beside_value(self) -> str:
        """The figure to compare with."""
        return show(self.beside, self.figure.unit)


@dataclass(frozen=True)
class FamilyTable:
    """The table by family of questions. rows: name, n, then one figure per column."""

    header: list[str]
    rows: list[list[str]]


def find(results: dict[str, Result], task: str, key: str = "") -> Score | None:
    """A figure of a task; the key "" is the main one. None if the task did not run or has no such figure."""
    if task not in results:
        return None
    return results[task].more.get(key) if key else results[task].main


def score_rows(results: dict[str, Result]) -> list[Row]:
    """Every figure of the report, measured or not; those of optional tasks where they were measured."""
    return [
        Row(
            figure,
            find(results, task, figure.key),
            find(results, figure.beside.task, figure.beside.key) if figure.beside else None,
        )
        for task, figure in FIGURES
        if task not in OPTIONAL or find(results, task, figure.key)
    ]


def family_table(results: dict[str, Result]) -> FamilyTable:
    """The figures of each family of questions."""
    families: dict[str, int] = {}
    for task, column in FAMILY_COLUMNS:
        for name, score in (results[task].more if task in results else {}).items():
            if name.startswith(column.prefix):
                families.setdefault(name.removeprefix(column.prefix), score.n)
    header = ["family", "n", *(column.title for _, column in FAMILY_COLUMNS)]
    rows = [
        [name, str(n), *(show(find(results, task, column.prefix + name)) for task, column in FAMILY_COLUMNS)]
        for name, n in families.items()
    ]
    return FamilyTable(header, rows)


def show(score: Score | None, unit: str = SHARE, error: bool = False) -> str:
    """A figure for readers, such as "12.3 %" or "12.3 ± 1.1 %"."""
    if score is None:
        return NOT_RUN
    if score.value is None:
        return "undefined"
    width = ""
    if error and score.standard_error is not None:
        width = f" ± {_scaled(score.standard_error, unit)}"
    return f"{_scaled(score.value, unit)}{width} {unit}"


def _scaled(value: float, unit: str) -> str:
    return f"{100 * value:.1f}" if unit == SHARE else f"{value:.2f}"


def summary_line(results: dict[str, Result], minutes: float | None, name: str) -> str:
    """The headline figures of a run on one line, as fractions: `NAME: asr_wer=0.026 ... minutes=23.4`."""
    cells = [f"{row.figure.name}={_fraction(row.score)}" for row in score_rows(results) if row.figure.headline]
    return f"{name}: {' '.join(cells)} minutes={'unknown' if minutes is None else f'{minutes:.1f}'}"


def _fraction(score: Score | None) -> str:
    if score is None:
        return NOT_RUN.replace(" ", "-")
    return "undefined" if score.value is None else f"{score.value:.3f}"
