"""latency: questions answered one at a time as a stream; seconds until the first text and the first sound.

The stream is measured as the model gives it: `first_piece` is the size of its first chunk. `llama-omni-latency`
measures one model at several sizes of chunks.
"""

from __future__ import annotations

import time

from eval.likelihood.pairs import mean_score
from eval.measurement import FAULTS_OF_THE_MODEL, Measurement, refusal, resampled
from eval.tasks.task import NO_LISTENER, Figure, Outcome, Task
from eval.test_set import NotMeasured, TestItem, spread
from speechgpt.answers import answer_pieces
from units.audio import SAMPLE_RATE
from units.runtime.progress import progress

NUM_TIMED = 10  # questions
FIRST = ("first_transcript", "first_text", "first_sound")


def run(measurement: Measurement) -> Outcome:
    """Mean seconds until the first sound; also until the transcript, the first text and the end.

    `first_piece` is the length of the first piece of sound; `starved` the seconds in which a listener, to whom each
    piece is played as it comes, would hear nothing between pieces.

    Without self-verification, which hears the whole sound before any is given. The question has ended before the clock
    starts: recording and network are not in it.
    """
    measurement.require("answer")
    details: list[dict] = []
    for item in progress(spread(measurement.test_set.test, NUM_TIMED), desc="timing streams", unit="questions"):
        try:
            if not details:
                _timed(measurement, item)  # warm up
            details.append(_timed(measurement, item))
        except FAULTS_OF_THE_MODEL:
            raise
        except (ValueError, OSError) as error:
            measurement.refused[item.id] = refusal(item, error)
    figures = {
        name: mean_score(row[name] for row in details if row[name] is not None)
        for name in (*FIRST, "first_piece", "starved", "whole")
    }
    if not figures["whole"].n:
        raise NotMeasured("every question that was to be timed was refused")
    return Outcome(figures.pop("first_sound"), details, NO_LISTENER, figures)


def _timed(measurement: Measurement, item: TestItem) -> dict:
    """Seconds from the question to each part of the answer; None for a part that did not come."""
    wav = resampled(item.wav(), SAMPLE_RATE, measurement.model.sample_rate)
    found: dict[str, float | None] = dict.fromkeys((*FIRST, "first_piece", "starved"))
    played_until = starved = 0.0  # seconds since the question, of a listener to whom the sound is played
    start = time.perf_counter()
    for piece in answer_pieces(measurement.model, wav, measurement.first_candidate):
        now = time.perf_counter() - start
        sound = 0.0 if piece.wav is None else len(piece.wav) / measurement.model.sample_rate
        for name, came in zip(FIRST, (piece.transcript, piece.text, sound)):
            if came and found[name] is None:
                found[name] = now
        if sound:
            found["first_piece"] = found["first_piece"] or sound
            starved += max(0.0, now - played_until) if played_until else 0.0
            played_until = max(played_until, now) + sound
            found["starved"] = starved
    return {"id": item.id, **found, "whole": time.perf_counter() - start}


TASK = Task(
    "latency",
    run,
    "first_sound_seconds",
    higher_is_better=False,
    version=2,
    figures=(
        Figure("first_sound", "seconds until the first sound of an answer", unit="s"),
        Figure("first_transcript", "... until the transcript of the question", "first_transcript", unit="s"),
        Figure("first_text", "... until the first text", "first_text", unit="s"),
        Figure("first_piece", "seconds of sound in the first piece", "first_piece", unit="s", higher_is_better=None),
        Figure("starved", "seconds without sound between the pieces, if played as they come", "starved", unit="s"),
        Figure("whole_answer", "seconds until the whole answer, streamed", "whole", unit="s"),
    ),
    optional=True,
    asked=True,
)
