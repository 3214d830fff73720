"""The report as one HTML file with pictures and audio inside it, from report.html.jinja."""

from __future__ import annotations

import base64
from pathlib import Path

from eval.metrics import words
from eval.report.content import Report
from eval.report.tables import NOT_RUN
from units.runtime.pages import environment

TEMPLATE = "report.html.jinja"


def html(report: Report) -> str:
    """The whole page. Every text of the report is escaped."""
    templates = environment(Path(__file__).parent)
    templates.filters["base64"] = lambda path: base64.b64encode(path.read_bytes()).decode()
    templates.globals |= {"NOT_RUN": NOT_RUN, "verdict": verdict}
    return templates.get_template(TEMPLATE).render(report=report)


def verdict(text: str | None, reference: str | None) -> str:
    """The style of a text: "right" if its words are the reference's, else "wrong"; "" without a reference."""
    if not words(reference):
        return ""
    return "right" if words(text) == words(reference) else "wrong"
