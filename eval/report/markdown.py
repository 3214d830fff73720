"""The report in Markdown, for a terminal or a forge. Pictures and audio are links relative to the report's folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from eval.report.content import Exchange, Report
from eval.report.tables import NOT_RUN, Row

SCORE_HEADER = ("", "what", "score", "n", "beside it")
EXCHANGE_HEADER = ("family", "asked", "understood", "answered", "right answer", "evaluation ASR", "audio")
NOTHING = "(nothing)"


def markdown(report: Report, folder: Path) -> str:
    """The whole report. folder: where it will lie."""
    scores = table(SCORE_HEADER, [_score_cells(row) for row in report.rows])
    families = table(report.families.header, report.families.rows) if report.families.rows else [NOT_RUN]
    exchanges = [exchange_cells(exchange, folder) for exchange in report.exchanges]
    lines = [f"# {report.title}", "", *scores]
    for title, content in (
        ("By family", families),
        ("Listen", table(EXCHANGE_HEADER, exchanges) if exchanges else [NOT_RUN]),
        ("A question and its answer", [_picture("A question and its answer", report.exchange_picture, folder)]),
        ("Training", [_picture("Training", report.curves, folder)]),
        ("How to read the figures", [f"* {note}" for note in report.notes]),
        ("Made with", [f"* {name}: {value}" for name, value in report.facts]),
    ):
        lines += ["", f"## {title}", "", *content]
    return "\n".join([*lines, ""])


def exchange_cells(exchange: Exchange, folder: Path) -> list[str]:
    """The cells of one question and its answer."""
    wavs = [("question", exchange.question_wav), ("answer", exchange.answer_wav)]
    return [
        exchange.family,
        exchange.question,
        exchange.transcript or NOTHING,
        exchange.text or NOTHING,
        exchange.gold,
        exchange.recognised or NOTHING,
        " ".join(f"[{name}]({_relative(path, folder)})" for name, path in wavs if path),
    ]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return ["| " + " | ".join(map(_escaped, cells)) + " |" for cells in [header, ["---"] * len(header), *rows]]


def _score_cells(row: Row) -> list[str]:
    beside = f"{row.beside_value} ({row.figure.beside.name})" if row.figure.beside else ""
    return [f"`{row.figure.name}`", row.figure.meaning, row.value_with_error, row.n, beside]


def _picture(title: str, path: Path | None, folder: Path) -> str:
    return f"![{title}]({_relative(path, folder)})" if path else NOT_RUN


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def _escaped(cell: str) -> str:
    """A cell that ends neither its column nor its row."""
    return " ".join(cell.replace("|", "\\|").splitlines())
