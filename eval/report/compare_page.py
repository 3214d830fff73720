"""The comparison as a page and in Markdown."""

from __future__ import annotations

from pathlib import Path

from eval.report.comparison import Comparison
from eval.report.markdown import table
from units.runtime.pages import environment

TEMPLATE = "compare.html.jinja"


def comparison_html(comparison: Comparison, title: str) -> str:
    """The page. Every text is escaped."""
    templates = environment(Path(__file__).parent)
    return templates.get_template(TEMPLATE).render(comparison=comparison, title=title)


def comparison_markdown(comparison: Comparison, title: str) -> str:
    """The table, the notes, and how each column was measured."""
    header = ["figure", "what", *(column.title for column in comparison.columns), "floor", "published"]
    rows = [
        [
            f"`{row.figure.name}` {row.better}{' †' if row.mixed else ''}",
            row.figure.meaning,
            *row.cells(),
            row.floor_cell,
            "; ".join(row.published_cells()),
        ]
        for row in comparison.rows
    ]
    lines = [f"# {title}", "", *table(header, rows), "", *(f"* {note}" for note in comparison.notes), ""]
    return "\n".join([*lines, *(f"* {name}: {how}" for name, how in comparison.facts), ""])
