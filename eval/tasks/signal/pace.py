"""pace: words a second in spoken answers, and how far their lengths are from recordings of the same words."""

from __future__ import annotations

from collections.abc import Sequence

from eval.measurement import Measurement
from eval.metrics import Score, ratio, words
from eval.tasks.signal.spoken import OF_RECORDINGS, Spoken, no_sound, recordings, spoken_answers
from eval.tasks.task import NO_LISTENER, Beside, Figure, Outcome, Task
from units.audio import SAMPLE_RATE


def run(measurement: Measurement) -> Outcome:
    """Words a second of the model's own texts; also those of recordings of the answer voice, and errors of length.

    `length_error` adds absolute differences to a recording of the same words, over the recordings' seconds; in
    `length_bias` too long and too short answers cancel out. Answers whose words are not recorded are in neither.
    """
    answers, recorded = spoken_answers(measurement), recordings(measurement)
    figures = no_sound(measurement, answers)
    if recorded:
        figures[f"{OF_RECORDINGS}/words_a_second"] = words_a_second(recorded)
    lengths = {" ".join(words(one.text)): len(one.wav) / SAMPLE_RATE for one in recorded}
    compared = [(one, lengths[said]) for one in answers if (said := " ".join(words(one.text))) in lengths]
    if compared:
        seconds = [length for _, length in compared]
        differences = [len(one.wav) / SAMPLE_RATE - length for one, length in compared]
        figures["length_error"] = ratio([abs(one) for one in differences], seconds)
        figures["length_bias"] = ratio(differences, seconds)
    details = [
        {"id": one.item.id, "text": one.text, "words": len(words(one.text)), "seconds": len(one.wav) / SAMPLE_RATE}
        for one in answers
    ]
    return Outcome(words_a_second(answers), details, NO_LISTENER, figures)


def words_a_second(spoken: Sequence[Spoken]) -> Score:
    """Words of all texts over seconds of all wavs."""
    return ratio([len(words(one.text)) for one in spoken], [len(one.wav) / SAMPLE_RATE for one in spoken])


TASK = Task(
    "pace",
    run,
    "words_a_second",
    higher_is_better=False,
    version=1,
    figures=(
        Figure(
            "words_a_second",
            "words a second in spoken answers",
            unit="/s",
            higher_is_better=None,
            beside=Beside("pace", f"{OF_RECORDINGS}/words_a_second", "recordings of the answer voice"),
        ),
        Figure("length_error", "... lengths, off recordings of the same words by", "length_error"),
    ),
    optional=True,
)
