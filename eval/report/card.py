"""Draw the report of a run: what was measured, with errors, curves and audio; what was not measured is "not run".

    python -m eval.report.card --run runs/toy --out runs/toy/report

Only reads: results/, */log.jsonl and corpus/corpus.json of the run folder. The last line is the run's figures.
"""

from __future__ import annotations

import time
from pathlib import Path

from eval.report.page import Exchange, Report, html, markdown
from eval.report.plots import draw_exchange, draw_training, read_logs
from eval.report.tables import family_rows, notes, score_rows, summary_line
from eval.results import Result, kept_wav, load_details, load_results
from units.audio import load_wav
from units.runtime.atomic import written_whole


def gather(run: Path, out: Path, title: str, minutes: float | None) -> Report:
    """Read a run folder and draw its pictures into `out`."""
    results = load_results(run / "results")
    logs = read_logs(run)
    exchanges = read_exchanges(run / "results" / "answers")
    return Report(
        title=title,
        rows=score_rows(results),
        families=family_rows(results),
        exchanges=exchanges,
        curves=draw_training(logs, out / "curves.png") if logs else None,
        exchange_picture=_draw_first(exchanges, out / "exchange.png"),
        notes=notes(run, results),
        facts=_facts(results, minutes),
    )


def read_exchanges(folder: Path) -> list[Exchange]:
    """The spoken answers that eval.run kept; none if the folder is not there."""

    def wav(record: dict, kind: str) -> Path | None:
        path = kept_wav(folder, record["id"], kind)
        return path if path.exists() else None

    return [
        Exchange(
            **{name: record[name] for name in ("family", "question", "gold", "transcript", "text", "heard")},
            question_wav=wav(record, "question"),
            answer_wav=wav(record, "answer"),
        )
        for record in load_details(folder / "answers.jsonl")
    ]


def _draw_first(exchanges: list[Exchange], path: Path) -> Path | None:
    """Draw the first question that got a spoken answer, if any did."""
    for e in exchanges:
        if e.question_wav and e.answer_wav:
            titles = (f"asked: {e.question}", f"answered: {e.text or '(nothing)'}")
            return draw_exchange(load_wav(e.question_wav), load_wav(e.answer_wav), titles, path)
    return None


def _facts(results: dict[str, Result], minutes: float | None) -> list[tuple[str, str]]:
    """How the figures were made; more than one value where the results disagree."""
    found = []
    for name in ("model", "codebook", "corpus", "commit", "machine", "device", "listener"):
        values = {
            getattr(r, name)
            for task, r in results.items()
            if not (name in ("model", "corpus") and task == "resynthesis")
        }
        found.append((name, "; ".join(sorted(values - {"-"})) or "unknown"))
    found.append(
        ("minutes", "unknown" if minutes is None else f"{minutes:.1f}, from the first command to the last result")
    )
    return found


def minutes_taken(run: Path, since: Path) -> float | None:
    """Minutes from `since` (a file's time) to the run's last result, or now if there is none; None without the file."""
    if not since.exists():
        return None
    ends = [path.stat().st_mtime for path in (run / "results").glob("*.json")]
    return max(0.0, max(ends, default=time.time()) - since.stat().st_mtime) / 60


def main(run: Path, out: Path, minutes_since: Path | None = None, name: str = "toy") -> None:
    """Draw report.html and REPORT.md of a run.

    Args:
        run: the run folder
        out: the folder for the report
        minutes_since: a file as old as the run, RUN/started if not given
        name: what the last line and the title call the run
    """
    minutes = minutes_taken(run, minutes_since or run / "started")
    out.mkdir(parents=True, exist_ok=True)
    report = gather(run, out, f"{name}: a model that listens and speaks", minutes)
    for file_name, text in (("report.html", html(report)), ("REPORT.md", markdown(report, out))):
        with written_whole(out / file_name) as file:
            file.write(text)
    spoken = next((e.answer_wav for e in report.exchanges if e.answer_wav), None)
    print(f"report: {out / 'report.html'} and {out / 'REPORT.md'}")
    print(f"a spoken answer: {spoken or 'not run'}")
    print(summary_line(load_results(run / "results"), minutes, name))


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
