"""Draw the report of a run folder: figures with errors, training curves and audio.

    eval-report --run runs/toy --out runs/toy/report

Reads results/, */log.jsonl and corpus/corpus.json of the run folder and changes nothing in them. A figure that was not
measured is shown as "not run". The last printed line has the headline figures.
"""

from __future__ import annotations

from pathlib import Path

from units.runtime.command import command


@command("eval-report", positional=False)
def main(run: Path, out: Path, minutes_since: Path | None = None, name: str | None = None) -> None:
    """Draw report.html and REPORT.md of a run folder.

    Args:
        run: the run folder
        out: the folder for the report
        minutes_since: a file whose time is the start of the run; default: RUN/started
        name: what the title and the last line call the run; default: the name of its folder
    """
    from eval.report.content import gather, minutes_taken
    from eval.report.markdown import markdown
    from eval.report.page import html
    from eval.report.tables import summary_line
    from eval.results import load_results
    from units.runtime.files.atomic import written_whole

    name = name or run.resolve().name
    minutes = minutes_taken(run, minutes_since or run / "started")
    out.mkdir(parents=True, exist_ok=True)
    report = gather(run, out, name, minutes)
    for file_name, text in (("report.html", html(report)), ("REPORT.md", markdown(report, out))):
        with written_whole(out / file_name) as file:
            file.write(text)
    spoken = next((e.answer_wav for e in report.exchanges if e.answer_wav), None)
    print(f"report: {out / 'report.html'} and {out / 'REPORT.md'}")
    print(f"a spoken answer: {spoken or 'not run'}")
    print(summary_line(load_results(run / "results"), minutes, name))


if __name__ == "__main__":
    main.cli()
