"""One table of several runs: models in columns, figures in rows, with the floor, the cascade and what was published."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from eval.metrics import Score
from eval.report.tables import FIGURES, SHARE, find, show
from eval.results import Result, load_results
from eval.tasks.task import Figure
from units.runtime.files.json_files import FileError, FileReason, checked, parsed, read_text

Kind = Literal["model", "cascade", "topline"]
PUBLISHED = Path(__file__).with_name("published.json")
KINDS: tuple[Kind, ...] = ("model", "cascade", "topline")  # in the order of the columns
NOTES = (
    "Each value is followed by one standard error; n, in brackets, is the number of examples. Two values are different "
    "where they are some two standard errors of their difference apart.",
    "The floor is the evaluation ASR's own error on recordings: no speech can be measured to be better.",
    "A cascade is a recogniser, a text LLM and a TTS voice one after the other. A topline is the LLM given the true "
    "transcripts: the most that a system around it can reach.",
    "Grey figures were published by others, on the published suites and by the programs of their sources. They compare "
    "with a value beside them only where that was measured on the same suite.",
)


class ComparisonError(ValueError):
    """Runs that cannot be compared, such as a folder without results."""


@dataclass(frozen=True)
class PublishedFigure:
    """A figure of another model. name: of the figure here. value: as the row's unit has it, a share for %."""

    figure: str
    model: str
    value: float
    source: str


@dataclass(frozen=True)
class Column:
    """The results of one run."""

    title: str
    kind: Kind
    model: str
    results: dict[str, Result]


@dataclass(frozen=True)
class ComparedRow:
    """One figure of all columns.

    scores: of each column; None where it was not measured. floor: the evaluation ASR's, if the figure has one.
    mixed: whether the columns were measured on several test sets, or by several evaluation ASRs.
    """

    task: str
    figure: Figure
    scores: list[Score | None]
    floor: Score | None
    published: list[PublishedFigure]
    mixed: bool

    def cells(self) -> list[str]:
        """A text for each column, such as "12.3 ± 1.1 % (157)"; "" where it was not measured."""
        return [_cell(score, self.figure.unit) for score in self.scores]

    @property
    def floor_cell(self) -> str:
        """The floor, without its n."""
        return "" if self.floor is None else show(self.floor, self.figure.unit, error=True)

    def published_cells(self) -> list[str]:
        """A text for each published figure, with its model and source."""
        return [f"{show(Score(p.value, None, 0), self.figure.unit)} {p.model} ({p.source})" for p in self.published]

    @property
    def better(self) -> str:
        """Which way is better, as an arrow."""
        return {True: "↑", False: "↓", None: ""}[self.figure.higher_is_better]


@dataclass(frozen=True)
class Comparison:
    """The whole table. facts: title of a column -> how it was measured."""

    columns: list[Column]
    rows: list[ComparedRow]
    notes: list[str]
    facts: list[tuple[str, str]]


def compare(runs: Sequence[str], every: bool = False, published: Path | None = PUBLISHED) -> Comparison:
    """The table of some runs.

    Args:
        runs: folders of results, or run folders with `results/`; NAME=FOLDER names the column, and FOLDER,FOLDER joins
            the results of one model.
        every: also the figures that the report does not show, such as those by frequency, type and family.
        published: the file of figures of others; None leaves them out.

    Raises:
        ComparisonError: a folder has no result, or two columns have one title.
        FileError, ResultError: a file is damaged.
    """
    columns = sorted(map(_column, runs), key=lambda column: KINDS.index(column.kind))
    titles = [column.title for column in columns]
    if twice := {title for title in titles if titles.count(title) > 1}:
        raise ComparisonError(f"two columns are called {', '.join(sorted(twice))}; name them: NAME=FOLDER")
    known = read_published(published) if published else []
    rows = [row for task, figure in _figures(columns, every) if (row := _row(task, figure, columns, known))]
    notes = [*NOTES]
    if any(row.mixed for row in rows):
        notes.insert(0, "Rows with † were measured on different test sets, or by different evaluation ASRs or limits.")
    return Comparison(columns, rows, notes, [(column.title, _how(column)) for column in columns])


def read_published(path: Path) -> list[PublishedFigure]:
    """Published figures: a JSON list of objects with figure, model, value and source.

    Raises:
        FileError: the file is not that.
    """
    found: Any = parsed(read_text(path), str(path))
    if not isinstance(found, list):
        raise FileError(FileReason.NOT_JSON, f"{path} is not a list of published figures")
    fields = {"figure": str, "model": str, "value": int | float, "source": str}
    rows = [checked(row, f"{path}, figure {number}", fields) for number, row in enumerate(found, 1)]
    return [PublishedFigure(**{name: row[name] for name in fields}) for row in rows]


def _column(run: str) -> Column:
    title, named, folder = run.rpartition("=")
    results: dict[str, Result] = {}
    for path in map(Path, folder.split(",")):
        found = load_results(path / "results") or load_results(path)
        if not found:
            raise ComparisonError(
                f"{path} has no results; it is what eval-run --out wrote, or a run folder with results/"
            )
        if twice := sorted(results.keys() & found.keys()):
            raise ComparisonError(f"{folder}: more than one folder has results of {', '.join(twice)}")
        results |= found
    path = Path(folder.split(",")[0])
    shown = path.resolve().parent.name if path.resolve().name == "results" else path.resolve().name
    models = [result.model for task, result in results.items() if task != "resynthesis"]
    model = models[0] if models else next(iter(results.values())).model
    kind: Kind = "model"
    if model.startswith("cascade "):
        kind = "topline" if model.startswith("cascade the true transcripts") else "cascade"
    return Column(title if named else shown, kind, model, results)


def _figures(columns: Sequence[Column], every: bool) -> list[tuple[str, Figure]]:
    """Every figure of the report, task by task; then, if asked for, the further ones of that task."""
    found: list[tuple[str, Figure]] = []
    known = {(task, figure.key) for task, figure in FIGURES}
    for task in dict.fromkeys([task for task, _ in FIGURES] + [task for c in columns for task in c.results]):
        found += [(name, figure) for name, figure in FIGURES if name == task]
        keys = dict.fromkeys(key for c in columns if task in c.results for key in ["", *c.results[task].more])
        results = [c.results[task] for c in columns if task in c.results]
        for key in keys if every else ():
            if (task, key) not in known:
                higher = results[0].higher_is_better if not key else None
                found.append((task, Figure(f"{task}/{key or results[0].metric}", "", key, "", higher)))
    return found


def _row(task: str, figure: Figure, columns: Sequence[Column], known: list[PublishedFigure]) -> ComparedRow | None:
    scores = [find(column.results, task, figure.key) for column in columns]
    measured = [column.results[task] for column, score in zip(columns, scores) if score is not None]
    if not measured:
        return None
    floor = None
    if figure.beside and figure.beside.task in ("originals", "resynthesis"):
        floors = (find(column.results, figure.beside.task, figure.beside.key) for column in columns)
        floor = next((one for one in floors if one is not None), None)
    circumstances = {(one.corpus, one.limit, one.reply_tokens, one.version) for one in measured}
    listeners = {one.listener for one in measured}
    beside = [one for one in known if one.figure == figure.name]
    return ComparedRow(task, figure, scores, floor, beside, len(circumstances) > 1 or len(listeners) > 1)


def _cell(score: Score | None, unit: str) -> str:
    return "" if score is None else f"{_shown(score, unit)} ({score.n})"


def _shown(score: Score, unit: str) -> str:
    if unit or score.value is None:
        return show(score, unit, error=True)
    error = "" if score.standard_error is None else f" ± {score.standard_error:.3f}"
    return f"{score.value:.3f}{error}"


def _how(column: Column) -> str:
    parts = [column.model]
    for name in ("corpus", "listener", "commit", "machine"):
        values = sorted({str(getattr(result, name)) for result in column.results.values()} - {"-", "the model"})
        parts.append(f"{name} {'; '.join(values)}")
    return ", ".join(parts)


def as_record(comparison: Comparison) -> dict[str, Any]:
    """The table as JSON holds it."""
    return {
        "columns": [{"title": c.title, "kind": c.kind, "model": c.model} for c in comparison.columns],
        "rows": [
            {
                "figure": row.figure.name,
                "task": row.task,
                "unit": "share" if row.figure.unit == SHARE else row.figure.unit,
                "higher_is_better": row.figure.higher_is_better,
                "scores": [None if score is None else dataclasses.asdict(score) for score in row.scores],
                "floor": None if row.floor is None else dataclasses.asdict(row.floor),
                "published": [dataclasses.asdict(one) for one in row.published],
                "different_test_sets": row.mixed,
            }
            for row in comparison.rows
        ],
        "notes": comparison.notes,
        "measured": dict(comparison.facts),
    }
