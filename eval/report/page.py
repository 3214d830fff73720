"""The report as a page: one HTML file that needs nothing else, and the same in Markdown."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from eval.metrics import words
from eval.report.tables import HEADLINE, NOT_RUN, Row, show


@dataclass(frozen=True)
class Exchange:
    """One spoken question and its answer, as the model wrote it and as the judge heard it; wavs are paths or None."""

    family: str
    question: str
    gold: str
    transcript: str | None
    text: str | None
    heard: str | None
    question_wav: Path | None
    answer_wav: Path | None


@dataclass(frozen=True)
class Report:
    """All that a report shows. curves, exchange_picture: PNG files or None."""

    title: str
    rows: list[Row]
    families: tuple[list[str], list[list[str]]]
    exchanges: list[Exchange]
    curves: Path | None
    exchange_picture: Path | None
    notes: list[str]
    facts: list[tuple[str, str]]


SUBTITLE = "Speech in, speech out: what was measured, and beneath it what to know before believing it."
META = "<meta charset=utf-8><meta name=viewport content='width=device-width,initial-scale=1'>"
CSS = """
:root{--ink:#22303c;--soft:#5d6c79;--line:#dfe6ec;--accent:#1f6f8b;--paper:#fff;--ground:#f4f6f8}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.55 system-ui,"Segoe UI",Roboto,sans-serif}
main{max-width:1120px;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:1.9rem;margin:0}h2{font-size:1.15rem;margin:2.6rem 0 .8rem}
.sub{color:var(--soft);margin:.3rem 0 1.6rem}
.soft{color:var(--soft);font-size:.86rem}.none{color:#9aa7b2;font-style:italic}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(165px,1fr));gap:.8rem}
.card,.box{background:var(--paper);border:1px solid var(--line);border-radius:10px}
.card{padding:.9rem 1rem}.card b{display:block;font-size:1.65rem;line-height:1.25;color:var(--accent)}
.card small{color:var(--soft);display:block;line-height:1.35}.card .name{font-weight:600;color:var(--ink)}
.box{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{padding:.5rem .9rem;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
tr:last-child td{border-bottom:0}th{font-weight:600;color:var(--soft);white-space:nowrap}
.num{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
code{font-size:.88em;color:var(--accent)}.ok{color:#2d7d46}.bad{color:#b3402a}
img{max-width:100%;display:block;padding:.8rem}audio{width:250px;height:34px;display:block;margin-top:.3rem}
ul{padding-left:1.2rem}li{margin:.45rem 0}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.3rem 1.2rem;padding:1rem;margin:0;font-size:.92rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
"""


def html(report: Report) -> str:
    """The whole page; pictures and audio are inside it."""
    by_name = {row.name: row for row in report.rows}
    cards = "".join(_card(by_name[name]) for name in HEADLINE)
    scores = _table(
        ["", "what", "score", "n", "better", "beside it"], [_score_cells(row) for row in report.rows], {2, 3}
    )
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in report.facts)
    sections = {
        "Scores": scores,
        "By family": _families(report.families),
        "Listen": _exchanges(report.exchanges),
        "A question and its answer": _picture(report.exchange_picture, "spectrograms of a question and its answer"),
        "Training": _picture(report.curves, "training curves"),
        "Read this before believing it": f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in report.notes)}</ul>",
        "Made with": f"<div class=box><dl>{facts}</dl></div>",
    }
    title = escape(report.title)
    body = f"<h1>{title}</h1><p class=sub>{SUBTITLE}</p><div class=cards>{cards}</div>"
    body += "".join(f"<h2>{name}</h2>{content}" for name, content in sections.items())
    head = f"{META}<title>{title}</title><style>{CSS}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body><main>{body}</main></body></html>\n"


def _card(row: Row) -> str:
    error = row.score.standard_error if row.score else None
    width = f"± {error * 100:.1f} %" if error is not None else ""
    beneath = " · ".join(filter(None, (width, f"n = {row.score.n}" if row.score else "")))
    return (
        f"<div class=card><small class=name>{escape(row.name)}</small><b>{_cell(show(row.score, row.unit))}</b>"
        f"<small>{beneath}</small><small>{escape(row.meaning)}; {row.better} is better</small>"
        "</div>"
    )


def _score_cells(row: Row) -> list[str]:
    beside = (
        f"{_cell(show(row.beside, row.unit))} <span class=soft>{escape(row.beside_name)}</span>"
        if row.beside_name
        else ""
    )
    n = str(row.score.n) if row.score else ""
    return [
        f"<code>{row.name}</code>",
        escape(row.meaning),
        _cell(show(row.score, row.unit, error=True)),
        n,
        row.better,
        beside,
    ]


def _cell(text: str) -> str:
    return f"<span class=none>{text}</span>" if text == NOT_RUN else escape(text)


def _families(families: tuple[list[str], list[list[str]]]) -> str:
    header, rows = families
    if not rows:
        return f"<p class=none>{NOT_RUN}</p>"
    return _table(header, [[_cell(cell) for cell in row] for row in rows], set(range(1, len(header))))


def _exchanges(exchanges: Sequence[Exchange]) -> str:
    if not exchanges:
        return f"<p class=none>{NOT_RUN}</p>"
    rows = []
    for e in exchanges:
        asked = f"{escape(e.question)}<br><span class=soft>understood: {_same(e.transcript, e.question)}</span>"
        right, heard = f"right answer: {escape(e.gold) or 'unknown'}", f"the judge heard: {_same(e.heard, e.text)}"
        said = f"{_same(e.text, e.gold)}<br><span class=soft>{right}<br>{heard}</span>"
        rows.append([escape(e.family), asked + _audio(e.question_wav), said + _audio(e.answer_wav)])
    choice = "<p class=soft>The first test question of each of five families, whatever its answer is worth.</p>"
    return choice + _table(["family", "asked", "answered"], rows, set())


def _same(text: str | None, reference: str | None) -> str:
    """The text, green if its words are the reference's, red if not, and plain if there is nothing to compare it with."""
    shown = escape(text) if text else "(nothing)"
    if not words(reference):
        return shown
    return f"<span class={'ok' if words(text) == words(reference) else 'bad'}>{shown}</span>"


def _audio(path: Path | None) -> str:
    if not path:
        return "<br><i class=none>no speech</i>"
    return f"<audio controls preload=metadata src='data:audio/wav;base64,{_base64(path)}'></audio>"


def _picture(path: Path | None, name: str) -> str:
    if not path:
        return f"<p class=none>{NOT_RUN}</p>"
    return f"<div class=box><img alt='{name}' src='data:image/png;base64,{_base64(path)}'></div>"


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _table(header: list[str], rows: list[list[str]], numbers: set[int]) -> str:
    """Cells are HTML already; `numbers` are the columns set flush right."""
    kind = ["class=num" if i in numbers else "" for i in range(len(header))]
    head = "".join(f"<th {k}>{h}</th>" for k, h in zip(kind, header))
    body = "".join("<tr>" + "".join(f"<td {k}>{c}</td>" for k, c in zip(kind, row)) + "</tr>" for row in rows)
    return f"<div class=box><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


# --- the same in Markdown


def markdown(report: Report, folder: Path) -> str:
    """The report for a terminal or a forge; pictures and audio are files named relative to `folder`."""
    scores = [
        [f"`{r.name}`", r.meaning, show(r.score, r.unit, error=True), str(r.score.n) if r.score else "",
         f"{show(r.beside, r.unit)} ({r.beside_name})" if r.beside_name else ""]
        for r in report.rows
    ]  # fmt: skip
    lines = [f"# {report.title}", "", *_pipes(["", "what", "score", "n", "beside it"], scores), "", "## By family", ""]
    lines += _pipes(*report.families) if report.families[1] else [NOT_RUN]
    lines += ["", "## Listen", ""]
    heads = ["family", "asked", "understood", "answered", "right answer", "the judge heard", "audio"]
    lines += _pipes(heads, [_exchange_row(e, folder) for e in report.exchanges]) if report.exchanges else [NOT_RUN]
    for title, picture in (("A question and its answer", report.exchange_picture), ("Training", report.curves)):
        lines += ["", f"## {title}", "", f"![{title}]({_relative(picture, folder)})" if picture else NOT_RUN]
    lines += ["", "## Read this before believing it", "", *(f"* {note}" for note in report.notes)]
    lines += ["", "## Made with", "", *(f"* {name}: {value}" for name, value in report.facts), ""]
    return "\n".join(lines)


def _exchange_row(e: Exchange, folder: Path) -> list[str]:
    wavs = [("question", e.question_wav), ("answer", e.answer_wav)]
    links = " ".join(f"[{name}]({_relative(path, folder)})" for name, path in wavs if path)
    return [
        e.family,
        e.question,
        e.transcript or "(nothing)",
        e.text or "(nothing)",
        e.gold,
        e.heard or "(nothing)",
        links,
    ]


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def _pipes(header: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(map(_in_pipes, cells)) + " |" for cells in [header, ["---"] * len(header), *rows]]


def _in_pipes(cell: str) -> str:
    """A cell that neither ends its column nor its row."""
    return " ".join(cell.replace("|", "\\|").splitlines())
