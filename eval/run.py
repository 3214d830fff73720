"""Measure a model on the test split of a corpus: one results file a task.

    python -m eval.run --model runs/toy/model --corpus runs/toy/corpus --out runs/toy/results
    python -m eval.run --model runs/toy/model --corpus runs/toy/corpus --out /tmp/look --tasks asr,spoken_qa --limit 10

A task whose results file is there, for the same model and limit, is not run again unless `--force true`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from eval import tasks as house
from eval.judge import Judge
from eval.results import Result, ResultError, commit, fingerprint, load_result, machine, save_details, save_result


@dataclass(frozen=True)
class Task:
    """How a task is run and read. `version` grows when its meaning does: old results do not pass for new ones."""

    run: Callable[[house.Bench], house.Outcome]
    metric: str
    higher_is_better: bool
    version: int = 1


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


def evaluate(
    bench: house.Bench, out: Path, model_name: str, names: list[str] | None = None, force: bool = False
) -> dict[str, Result]:
    """Run tasks, each writing TASK.json and TASK.details.jsonl into `out`.

    Args:
        model_name: what the results call the model; another name makes every task run again.
        names: tasks; None takes all.
        force: run finished tasks again.

    Returns: the results by task, those found finished included.

    Raises: ValueError for an unknown task.
    """
    names = list(TASKS) if names is None else names
    unknown = [name for name in names if name not in TASKS]
    if unknown:
        raise ValueError(f"unknown tasks {unknown}; there are {', '.join(TASKS)}")
    found = {}
    for name in names:
        done = None if force else _finished(out / f"{name}.json", name, model_name, bench.limit)
        found[name] = done or _run(bench, out, name, model_name)
        print(f"{name:14} {sentence(found[name])}{'  (was done)' if done else ''}", flush=True)
    return found


def _finished(path: Path, name: str, model_name: str, limit: int | None) -> Result | None:
    """The task's result if it is there and of this version, model and limit."""
    if not path.exists():
        return None
    try:
        result = load_result(path)
    except ResultError as error:
        print(f"{error}; running {name} again")
        return None
    same = (result.version, result.model, result.limit) == (TASKS[name].version, model_name, limit)
    return result if same else None


def _run(bench: house.Bench, out: Path, name: str, model_name: str) -> Result:
    task = TASKS[name]
    outcome = task.run(bench)
    codebook = bench.model.encoder.codebook
    result = Result(
        task=name, version=task.version, metric=task.metric, higher_is_better=task.higher_is_better,
        listener=outcome.listener, model=model_name, codebook=f"{codebook.name} {codebook.fingerprint}",
        commit=commit(), machine=machine(), limit=bench.limit, n=outcome.score.n, score=outcome.score.value,
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
    model: Path,
    corpus: Path,
    out: Path,
    tasks: str | None = None,
    limit: int | None = None,
    force: bool = False,
    device: str = "cpu",
) -> None:
    """Measure a model on a corpus.

    Args:
        model: the model folder that speechgpt.bundle wrote
        corpus: the folder that instruct_data.toy wrote
        out: the folder for the results
        tasks: some tasks only, with commas between
        limit: at most so many examples of each set, for a quick look
        force: run finished tasks again
        device: where the model runs
    """
    from speechgpt.inference import SpeechGPT

    judge = Judge(corpus / "judge.jsgf")
    bench = house.Bench(SpeechGPT.from_pretrained(model, device=device), corpus, judge, limit, out / "answers")
    evaluate(bench, out, f"{model.name} {fingerprint(model)}", tasks.split(",") if tasks else None, force)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
