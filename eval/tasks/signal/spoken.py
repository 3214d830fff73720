"""What the tasks on sound share: the answers that have sound, and recordings of the answer voice beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eval.likelihood.pairs import mean_score
from eval.measurement import Measurement
from eval.metrics import Score
from eval.tasks.task import Outcome
from eval.test_set import NotMeasured, TestItem, spread
from units.audio import RECEPTIVE_FIELD, SILENT
from units.runtime.progress import progress

RECORDINGS = "answers_unseen.jsonl"  # the answer voice
MOST_RECORDINGS = 50  # evenly spaced
OF_RECORDINGS = "recordings"  # prefix of their figures


@dataclass(frozen=True)
class Spoken:
    """An answer, or a recording, with sound. text: what should be said in it."""

    item: TestItem
    text: str
    wav: np.ndarray


def spoken_answers(measurement: Measurement) -> list[Spoken]:
    """The model's answers that have sound.

    Raises:
        NotMeasured: none has.
    """
    measurement.require_part("wav")
    pairs = zip(measurement.test_set.test, measurement.answers)
    found = _audible([Spoken(item, answer.text or "", answer.wav) for item, answer in pairs if answer.wav is not None])
    if not found:
        raise NotMeasured("no answer has sound")
    return found


def recordings(measurement: Measurement) -> list[Spoken]:
    """Recordings of the answer voice; none where the test set has none."""
    if not measurement.test_set.has(RECORDINGS):
        return []
    items = spread(measurement.test_set.items(RECORDINGS), MOST_RECORDINGS)
    wavs = measurement.over_wavs(list, items, "reading the answer voice")
    return _audible([Spoken(item, item.question, wav) for item, wav in zip(items, wavs) if wav is not None])


def _audible(spoken: Sequence[Spoken]) -> list[Spoken]:
    return [one for one in spoken if len(one.wav) >= RECEPTIVE_FIELD and np.abs(one.wav).max() >= SILENT]


def opinions(
    measurement: Measurement, score: Callable[[np.ndarray], Mapping[str, float]], main: str, name: str, listener: str
) -> Outcome:
    """Mean scores of the answers; also those of recordings of the answer voice, and answers without sound.

    Args:
        score: wav (T,) at 16 kHz -> scores by name.
        main: the score that is the main figure.
        name: for the progress bar.
        listener: who scores.
    """
    answers, recorded = spoken_answers(measurement), recordings(measurement)
    scored = [dict(score(one.wav)) for one in progress(answers, desc=name, unit="answers")]
    figures = {each: mean_score(row[each] for row in scored) for each in scored[0]}
    beside = [dict(score(one.wav)) for one in progress(recorded, desc=f"{name}, recordings", unit="recordings")]
    for each in scored[0] if beside else ():
        figures[f"{OF_RECORDINGS}/{each}"] = mean_score(row[each] for row in beside)
    details = [{"id": one.item.id, "text": one.text, **row} for one, row in zip(answers, scored)]
    return Outcome(figures.pop(main), details, listener, figures | no_sound(measurement, answers))


def no_sound(measurement: Measurement, answers: Sequence[Spoken]) -> dict[str, Score]:
    """The share of answers that have no sound, and are therefore in no figure."""
    total = len(measurement.test_set.test)
    return {"no_sound": Score(1 - len(answers) / total, None, total)}
