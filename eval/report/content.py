"""The content of a report, read from a run folder: results/, */log.jsonl and corpus/corpus.json."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from eval.report.notes import notes
from eval.report.plots import draw_exchange, draw_training, read_logs
from eval.report.tables import FamilyTable, Row, family_table, score_rows
from eval.results import Result, load_details, load_results, old_kept_wav
from units.audio import load_wav

EXCHANGE_FIELDS = {
    **dict.fromkeys(("id", "family", "question", "gold"), str),
    **dict.fromkeys(("transcript", "text", "heard"), str | None),
}


@dataclass(frozen=True)
class Exchange:
    """One spoken question and its answer.

    gold: the right answer, "" where it is unknown. transcript, text: what the model understood and answered.
    recognised: the evaluation ASR's transcript of the spoken answer.
    question_wav, answer_wav: audio files, None where there is none.
    """

    family: str
    question: str
    gold: str
    transcript: str | None
    text: str | None
    recognised: str | None
    question_wav: Path | None
    answer_wav: Path | None


@dataclass(frozen=True)
class Report:
    """Everything that a report shows. curves, exchange_picture: PNG files or None. facts: name and value."""

    title: str
    rows: list[Row]
    families: FamilyTable
    exchanges: list[Exchange]
    curves: Path | None
    exchange_picture: Path | None
    notes: list[str]
    facts: list[tuple[str, str]]


def gather(run: Path, out: Path, name: str, minutes: float | None) -> Report:
    """Read a run folder, and draw its pictures into `out`."""
    results = load_results(run / "results")
    logs = read_logs(run)
    exchanges = read_exchanges(run / "results" / "answers")
    return Report(
        title=f"{name}: speech in, speech out",
        rows=score_rows(results),
        families=family_table(results),
        exchanges=exchanges,
        curves=draw_training(logs, out / "curves.png") if logs else None,
        exchange_picture=_draw_first(exchanges, out / "exchange.png"),
        notes=notes(run, results),
        facts=_facts(results, minutes),
    )


def read_exchanges(folder: Path) -> list[Exchange]:
    """The spoken answers that eval.run kept; none if the folder does not exist."""

    def wav(record: dict, kind: str) -> Path | None:
        name = record.get(f"{kind}_wav", "")  # release 0.1.0 did not write the names down
        path = old_kept_wav(folder, record["id"], kind) if name == "" else folder / str(name)
        return path if name is not None and path.is_file() else None

    return [
        Exchange(
            family=record["family"],
            question=record["question"],
            gold=record["gold"],
            transcript=record["transcript"],
            text=record["text"],
            recognised=record["heard"],
            question_wav=wav(record, "question"),
            answer_wav=wav(record, "answer"),
        )
        for record in load_details(folder / "answers.jsonl", EXCHANGE_FIELDS)
    ]


def minutes_taken(run: Path, since: Path) -> float | None:
    """Minutes from the time of the file `since` to the last result, or to now without results. None without it."""
    if not since.exists():
        return None
    ends = [path.stat().st_mtime for path in (run / "results").glob("*.json")]
    return max(0.0, max(ends, default=time.time()) - since.stat().st_mtime) / 60


def _draw_first(exchanges: list[Exchange], path: Path) -> Path | None:
    """Draw the first question that has a spoken answer, if there is one."""
    for e in exchanges:
        if e.question_wav and e.answer_wav:
            titles = (f"asked: {e.question}", f"answered: {e.text or '(nothing)'}")
            return draw_exchange(load_wav(e.question_wav), load_wav(e.answer_wav), titles, path)
    return None


def _facts(results: dict[str, Result], minutes: float | None) -> list[tuple[str, str]]:
    """How the figures were made; more than one value where the results disagree."""
    facts = []
    for name in ("model", "codebook", "corpus", "commit", "machine", "device", "listener"):
        own = name in ("model", "corpus")  # a resynthesis has a vocoder and a manifest instead
        values = {getattr(r, name) for task, r in results.items() if not (own and task == "resynthesis")}
        facts.append((name, "; ".join(sorted(values - {"-"})) or "unknown"))
    took = "unknown" if minutes is None else f"{minutes:.1f}, from the first command to the last result"
    return [*facts, ("minutes", took)]
