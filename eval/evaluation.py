"""An evaluation: tasks run one after the other, each with its results file. A finished task is not run again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eval.measurement import Measurement
from eval.model import UNNAMED, codebook_of
from eval.results import Result, ResultError, load_result, save_details, save_result
from eval.tasks import TASKS
from eval.tasks.task import NO_LISTENER, THE_MODEL, Task
from eval.test_set import NotMeasured
from speechgpt.answers import NotSupported
from units.runtime.files.atomic import written_whole
from units.runtime.provenance import commit, machine

REFUSED = "refused.jsonl"


class UnknownTask(ValueError):
    """A task that does not exist; the message lists those that do."""


def evaluate(
    measurement: Measurement, out: Path, names: Sequence[str] | None = None, force: bool = False
) -> dict[str, Result]:
    """Run tasks. Each writes TASK.json and TASK.details.jsonl into `out`.

    A task that raises NotMeasured or NotSupported is skipped. Its reason is printed; that of an optional task only if
    it was asked for.

    Args:
        names: of tasks; None takes all.
        force: run finished tasks again.

    Returns: the results by task, those that were finished before included.

    Raises: UnknownTask.
    """
    results = {}
    for task in tasks_of(names):
        try:
            done = None if force else _finished(out / f"{task.name}.json", task, measurement)
            result = done or _run(measurement, out, task)
        except (NotMeasured, NotSupported) as reason:
            if names is not None or not task.optional:
                print(f"{task.name:14} skipped: {reason}", flush=True)
            continue
        print(f"{task.name:14} {sentence(result)}{'  (was done)' if done else ''}", flush=True)
        results[task.name] = result
    _save_refused(measurement, out)
    return results


def tasks_of(names: Sequence[str] | None) -> list[Task]:
    """Tasks by name; for None all that need not be asked for. Raises UnknownTask."""
    tasks = {task.name: task for task in TASKS}
    names = [task.name for task in TASKS if not task.asked] if names is None else names
    unknown = [name for name in names if name not in tasks]
    if unknown:
        raise UnknownTask(f"unknown tasks {unknown}; the tasks are {', '.join(tasks)}")
    return [tasks[name] for name in names]


def sentence(result: Result) -> str:
    """The main figure of a result, such as "wer 0.123 +- 0.010, n = 157"."""
    if result.score is None:
        return f"{result.metric} undefined, n = {result.n}"
    error = "" if result.standard_error is None else f" +- {result.standard_error:.3f}"
    return f"{result.metric} {result.score:.3f}{error}, n = {result.n}"


def _finished(path: Path, task: Task, measurement: Measurement) -> Result | None:
    """The task's result, if the file exists and another run would measure the same."""
    if not path.exists() or measurement.model.name == UNNAMED:
        return None
    try:
        result = load_result(path)
    except ResultError as error:
        print(f"{error}; running {task.name} again")
        return None
    test_set = measurement.test_set
    limits = (test_set.limit, measurement.reply_tokens)
    wanted = (task.version, measurement.model.name, test_set.name, measurement.device, *limits)
    found = (result.version, result.model, result.corpus, result.device, result.limit, result.reply_tokens)
    own = task.listener(measurement) if task.listener else None
    if result.listener not in (THE_MODEL, NO_LISTENER, measurement.asr_name, measurement.judge_name, own):
        return None
    return result if found == wanted else None


def _run(measurement: Measurement, out: Path, task: Task) -> Result:
    outcome = task.run(measurement)
    result = Result(
        task=task.name,
        version=task.version,
        metric=task.metric,
        higher_is_better=task.higher_is_better,
        listener=outcome.listener,
        model=measurement.model.name,
        codebook=codebook_of(measurement.model),
        corpus=measurement.test_set.name,
        commit=commit(),
        machine=machine(measurement.device),
        device=measurement.device,
        limit=measurement.test_set.limit,
        n=outcome.score.n,
        score=outcome.score.value,
        standard_error=outcome.score.standard_error,
        more=outcome.more,
        reply_tokens=measurement.reply_tokens,
    )
    save_details(out / f"{task.name}.details.jsonl", outcome.details)
    save_result(out / f"{task.name}.json", result)
    return result


def _save_refused(measurement: Measurement, out: Path) -> None:
    """List the refused utterances, if there are any."""
    if not measurement.refused:
        return
    with written_whole(out / REFUSED) as file:
        file.writelines(refusal.line() for _, refusal in sorted(measurement.refused.items()))
    print(f"{len(measurement.refused)} utterances were refused and count as wrong: {out / REFUSED}", flush=True)
