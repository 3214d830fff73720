"""One table of several runs: models in columns, figures in rows, with floor, cascade, topline and published figures.

    eval-compare runs/toy cascade=results/cascade topline=results/topline --out results/compared

A run is a folder that eval-run wrote, or a run folder with `results/`. NAME=FOLDER names its column, and FOLDER,FOLDER
joins the results of one model. Cascades and toplines stand behind the models. compare.html, compare.md and compare.json
are written.
"""

from __future__ import annotations

from pathlib import Path

from units.runtime.command import command


@command("eval-compare")
def main(
    runs: list[str],
    out: Path = Path("compared"),
    title: str = "Comparison",
    every: bool = False,
    published: bool = True,
) -> None:
    """Compare several runs.

    Args:
        runs: folders with results; NAME=FOLDER names the column, FOLDER,FOLDER joins the results of one model
        out: the folder for compare.html, compare.md and compare.json
        title: of the page
        every: also figures that the report does not show, such as those by frequency, type and family
        published: a column of published figures, with their sources
    """
    import json

    from eval.report.compare_page import comparison_html, comparison_markdown
    from eval.report.comparison import PUBLISHED, as_record, compare
    from units.runtime.files.atomic import written_whole

    found = compare(runs, every, PUBLISHED if published else None)
    text = comparison_markdown(found, title)
    record = json.dumps(as_record(found), indent=1, ensure_ascii=False) + "\n"
    pages = {"compare.html": comparison_html(found, title), "compare.md": text, "compare.json": record}
    for name, content in pages.items():
        with written_whole(out / name) as file:
            file.write(content)
    print(text)
    print(f"comparison: {out / 'compare.html'}, compare.md and compare.json beside it")


if __name__ == "__main__":
    main.cli()
