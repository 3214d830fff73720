"""Measure a model on the test split of a corpus, or on any manifest: one results file a task.

    python -m eval.run --model runs/toy/model --corpus runs/toy/corpus --out runs/toy/results
    python -m eval.run --model runs/toy/model --corpus runs/toy/corpus --out /tmp/look --tasks asr,spoken_qa --limit 10
    python -m eval.run --model runs/mine/model --corpus dev.jsonl --out /tmp/dev      # hearing alone: nothing else is known
    python -m eval.run --model my_models:baseline --corpus runs/toy/corpus --out /tmp/theirs

A task that the model or the corpus has no means for is skipped, and says why. A task whose results file is there, for the
same model, corpus, device and limit, is not run again unless `--force true`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from eval import tasks as house
from eval.asr import Judge
from eval.bench import Bench
from eval.corpus import Corpus, NotMeasured
from eval.results import Result, ResultError, load_result, save_details, save_result
from eval.subject import open_subject
from units.runtime.provenance import commit, machine

REFUSED = "refused.jsonl"


@dataclass(frozen=True)
class Task:
    """How a task is run and read. `version` grows when its meaning does: old results do not pass for new ones."""

    run: Callable[[Bench], house.Outcome]
    metric: str
    higher_is_better: bool
    version: int = 2  # words of every script, answers of no words, errors by distinct answers


TASKS = {
    "originals": Task(house.originals, "wer", False),
    "asr": Task(house.asr, "wer", False),
    "spoken_qa": Task(house.spoken_qa, "accuracy", True),
    "answer_speech": Task(house.answer_speech, "wer", False),
    "new_voice": Task(house.new_voice, "wer", False),
    "text_qa": Task(house.text_qa, "accuracy", True),
    "tts": Task(house.tts, "wer", False),
    "speed": Task(house.speed, "real_time_factor", False),
}


def evaluate(bench: Bench, out: Path, names: list[str] | None = None, force: bool = False) -> dict[str, Result]:
    """Run tasks, each writing TASK.json and TASK.details.jsonl into `out`.

    Args:
        names: tasks; None takes all.
        force: run finished tasks again.

    Returns: the results by task, those found finished included; those that could not be measured are not there.

    Raises: ValueError for an unknown task.
    """
    names = list(TASKS) if names is None else names
    unknown = [name for name in names if name not in TASKS]
    if unknown:
        raise ValueError(f"unknown tasks {unknown}; there are {', '.join(TASKS)}")
    found = {}
    for name in names:
        done = None if force else _finished(out / f"{name}.json", name, bench)
        try:
            found[name] = done or _run(bench, out, name)
        except NotMeasured as reason:
            print(f"{name:14} skipped: {reason}", flush=True)
            continue
        print(f"{name:14} {sentence(found[name])}{'  (was done)' if done else ''}", flush=True)
    if bench.refused:
        save_details(out / REFUSED, [{"id": id, "reason": reason} for id, reason in sorted(bench.refused.items())])
        print(f"{len(bench.refused)} utterances could not be heard, and count as wrong: {out / REFUSED}", flush=True)
    return found


def _finished(path: Path, name: str, bench: Bench) -> Result | None:
    """The task's result if it is there and is what running it again would give."""
    if not path.exists() or bench.subject.name is None:
        return None
    try:
        result = load_result(path)
    except ResultError as error:
        print(f"{error}; running {name} again")
        return None
    came = (result.version, result.model, result.corpus, result.device, result.limit)
    subject, corpus = bench.subject, bench.corpus
    return result if came == (TASKS[name].version, subject.name, corpus.name, subject.device, corpus.limit) else None


def _run(bench: Bench, out: Path, name: str) -> Result:
    task, subject = TASKS[name], bench.subject
    outcome = task.run(bench)
    result = Result(
        task=name, version=task.version, metric=task.metric, higher_is_better=task.higher_is_better,
        listener=outcome.listener, model=subject.name or "without a name", codebook=subject.codebook,
        corpus=bench.corpus.name, commit=commit(), machine=machine(subject.device), device=subject.device,
        limit=bench.corpus.limit, n=outcome.score.n, score=outcome.score.value,
        standard_error=outcome.score.standard_error, more=outcome.more,
    )  # fmt: skip
    save_details(out / f"{name}.details.jsonl", outcome.details)
    save_result(out / f"{name}.json", result)
    return result


def sentence(result: Result) -> str:
    """A result in words, such as "wer 0.123 +- 0.010, n = 157"."""
    if result.score is None:
        return f"{result.metric} undefined, n = {result.n}"
    error = "" if result.standard_error is None else f" +- {result.standard_error:.3f}"
    return f"{result.metric} {result.score:.3f}{error}, n = {result.n}"


def main(
    model: str,
    corpus: Path,
    out: Path,
    tasks: str | None = None,
    limit: int | None = None,
    force: bool = False,
    device: str = "cpu",
    grammar: Path | None = None,
) -> None:
    """Measure a model on a corpus.

    Args:
        model: the model folder that speechgpt.bundle wrote, or module:function, which returns any model that answers
        corpus: a folder as instruct_data.toy writes it, of which test.jsonl is enough, or a manifest
        out: the folder for the results
        tasks: some tasks only, with commas between
        limit: at most so many examples of each set, for a quick look
        force: run finished tasks again
        device: where the model runs
        grammar: JSGF grammar of the judge who hears what the model says; without it the corpus folder's judge.jsgf
    """
    asked = Corpus(corpus, grammar, limit)
    judge = Judge(asked.file("judge.jsgf")) if asked.has("judge.jsgf") else None
    bench = Bench(open_subject(str(model), device), asked, judge, out / "answers")
    evaluate(bench, out, tasks.split(",") if tasks else None, force)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
