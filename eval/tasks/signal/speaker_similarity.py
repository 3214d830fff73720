"""speaker_similarity: do spoken answers sound like the answer voice? Cosine of Resemblyzer's embeddings."""

from __future__ import annotations

import numpy as np

from eval.likelihood.pairs import mean_score
from eval.measurement import Measurement
from eval.signal.speaker import SpeakerEncoder, mean_voice, name_of
from eval.tasks.signal.spoken import RECORDINGS, no_sound, recordings, spoken_answers
from eval.tasks.task import Beside, Figure, Outcome, Task
from eval.test_set import NotMeasured, spread
from units.audio import SILENT
from units.runtime.progress import progress

FEWEST = 2  # recordings: one is compared with the others
MOST_QUESTIONS = 20  # in other voices, evenly spaced


def listener(measurement: Measurement) -> str:
    """Who compares voices. Raises NotMeasured."""
    return name_of(measurement.signal.speaker)


def run(measurement: Measurement) -> Outcome:
    """Mean similarity of the answers to the answer voice.

    Also that of its recordings, each to the others (`recordings`: the most that can be reached), and of the questions'
    voices (`questions`: what another speaker has).
    """
    name, recorded = listener(measurement), recordings(measurement)
    if len(recorded) < FEWEST:
        where = measurement.test_set.path
        raise NotMeasured(f"{where} has no {RECORDINGS} with {FEWEST} recordings of the answer voice or more")
    answers, encoder = spoken_answers(measurement), SpeakerEncoder(measurement.signal.speaker)
    known = [encoder.embed(one.wav) for one in progress(recorded, desc="the answer voice", unit="recordings")]
    voice = mean_voice(known)
    found = [float(encoder.embed(one.wav) @ voice) for one in progress(answers, desc="voices", unit="answers")]
    others = [float(one @ mean_voice([*known[:i], *known[i + 1 :]])) for i, one in enumerate(known)]
    figures = {"recordings": mean_score(others), "questions": mean_score(_questions(measurement, encoder, voice))}
    details = [{"id": one.item.id, "text": one.text, "similarity": value} for one, value in zip(answers, found)]
    return Outcome(mean_score(found), details, name, figures | no_sound(measurement, answers))


def _questions(measurement: Measurement, encoder: SpeakerEncoder, voice: np.ndarray) -> list[float]:
    items = spread(measurement.test_set.test, MOST_QUESTIONS)
    wavs = measurement.over_wavs(list, items, "reading questions")
    return [float(encoder.embed(wav) @ voice) for wav in wavs if wav is not None and np.abs(wav).max() >= SILENT]


TASK = Task(
    "speaker_similarity",
    run,
    "cosine",
    higher_is_better=True,
    version=1,
    figures=(
        Figure(
            "speaker_similarity",
            "spoken answers and the answer voice: cosine of speaker embeddings",
            unit="",
            higher_is_better=True,
            beside=Beside("speaker_similarity", "recordings", "the voice's own recordings"),
        ),
        Figure("speaker_similarity_questions", "... of the questions' voices", "questions", "", None),
    ),
    optional=True,
    asked=True,
    listener=listener,
)
