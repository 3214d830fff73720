"""asr: the model transcribes the spoken test questions."""

from __future__ import annotations

from eval.measurement import Measurement
from eval.metrics import accuracy, character_error_rate, word_error_rate
from eval.tasks.breakdown import by_family
from eval.tasks.task import ASR_SAME_RECORDINGS, THE_MODEL, FamilyColumn, Figure, Outcome, Task, detail
from eval.test_set import TestItem


def run(measurement: Measurement) -> Outcome:
    """Word error rate; also character error rate and exactly right transcripts."""
    return transcription(measurement, measurement.test_set.test)


def transcription(measurement: Measurement, items: list[TestItem]) -> Outcome:
    """The model's transcripts of some items."""
    transcripts = measurement.over_wavs(measurement.transcribe, items, "transcribing")
    questions = [item.question for item in items]
    more = {"exact": accuracy(questions, transcripts), "cer": character_error_rate(questions, transcripts)}
    said, written = measurement.comparable(questions), measurement.comparable(transcripts)
    if said is not None and written is not None:
        more["wer_normalised"] = word_error_rate(said, written)
    more |= by_family(word_error_rate, items, questions, transcripts)
    details = [detail(item, transcript=transcript) for item, transcript in zip(items, transcripts)]
    return Outcome(word_error_rate(questions, transcripts), details, THE_MODEL, more)


TASK = Task(
    "asr",
    run,
    "wer",
    higher_is_better=False,
    version=2,
    figures=(
        Figure("asr_wer", "spoken question transcribed: word error rate", beside=ASR_SAME_RECORDINGS, headline=True),
    ),
    families=(FamilyColumn("ASR WER"),),
)
