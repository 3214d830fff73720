"""new_voice: the test questions in a voice that is in no training set, transcribed and answered."""

from __future__ import annotations

from eval.measurement import NO_ANSWER, Measurement
from eval.tasks.asr import transcription
from eval.tasks.qa.spoken_qa import text_answers
from eval.tasks.task import ASR_NEW_VOICE, THE_MODEL, Beside, FamilyColumn, Figure, Outcome, Task


def run(measurement: Measurement) -> Outcome:
    """Word error rate, and exactly right answers where the model gives text answers and the right ones are known."""
    items = measurement.test_set.new_voice
    heard = transcription(measurement, items)
    if "answer" not in measurement.model.capabilities or not measurement.test_set.has("chats.jsonl"):
        return heard
    answers = measurement.over_wavs(measurement.answer_once, items, "answering a new voice", NO_ANSWER)
    if all(answer.text is None for answer in answers):
        return heard
    answered = text_answers(measurement, items, answers)
    more = {**heard.more, "spoken_qa": answered.score}
    more |= {f"spoken_qa_{name}": score for name, score in answered.more.items()}
    details = [{**a, "transcript_in_answer": a["transcript"], **h} for a, h in zip(answered.details, heard.details)]
    return Outcome(heard.score, details, THE_MODEL, more)


TASK = Task(
    "new_voice",
    run,
    "wer",
    higher_is_better=False,
    version=2,
    figures=(
        Figure(
            "new_voice_wer",
            "word error rate in a voice that is in no training set",
            beside=ASR_NEW_VOICE,
            headline=True,
        ),
        Figure(
            "new_voice_qa",
            "exactly right answers in that voice",
            "spoken_qa",
            higher_is_better=True,
            beside=Beside("spoken_qa", "", "in the trained voices"),
        ),
    ),
    families=(FamilyColumn("new voice: ASR WER"), FamilyColumn("new voice: spoken QA right", "spoken_qa_family/")),
)
