"""speed: questions answered one at a time; seconds of work per second of spoken answer."""

from __future__ import annotations

import time

from eval.measurement import FAULTS_OF_THE_MODEL, Measurement, refusal
from eval.metrics import ratio
from eval.model import question_units
from eval.tasks.task import NO_LISTENER, Figure, Outcome, Task
from eval.test_set import NotMeasured, TestItem, spread
from units.audio import SAMPLE_RATE
from units.runtime.progress import progress

NUM_TIMED = 10  # questions


def run(measurement: Measurement) -> Outcome:
    """Real-time factor; also seconds per answer, and units per second of question where the model has units."""
    details: list[dict] = []
    for item in progress(spread(measurement.test_set.test, NUM_TIMED), desc="timing", unit="questions"):
        try:
            details.append(_timed(measurement, item, warm_up=not details))
        except FAULTS_OF_THE_MODEL:
            raise
        except (ValueError, OSError) as error:
            measurement.refused[item.id] = refusal(item, error)
    if not details:
        raise NotMeasured("every question that was to be timed was refused")
    column = {name: [detail[name] for detail in details] for name in details[0]}
    more = {"seconds_for_an_answer": ratio(column["seconds"], [1] * len(details))}
    if None not in column["question_units"]:
        more["units_per_second"] = ratio(column["question_units"], column["question_seconds"])
    return Outcome(ratio(column["seconds"], column["answer_seconds"]), details, NO_LISTENER, more)


def _timed(measurement: Measurement, item: TestItem, warm_up: bool) -> dict:
    """Answer one question and time it, once more beforehand to warm up."""
    wav = item.wav()
    if warm_up:
        measurement.answer([wav])
    start = time.perf_counter()
    (answer,) = measurement.answer([wav])
    return {
        "id": item.id,
        "seconds": time.perf_counter() - start,
        "question_seconds": len(wav) / SAMPLE_RATE,
        "answer_seconds": 0.0 if answer.wav is None else len(answer.wav) / SAMPLE_RATE,
        "question_units": question_units(answer),
    }


TASK = Task(
    "speed",
    run,
    "real_time_factor",
    higher_is_better=False,
    version=2,
    figures=(
        Figure("answer_rtf", "seconds of work per second of spoken answer", unit="s/s"),
        Figure("answer_seconds", "seconds from a question to its whole answer", "seconds_for_an_answer", unit="s"),
        Figure("unit_rate", "units per second of question", "units_per_second", unit="/s", higher_is_better=None),
    ),
)
