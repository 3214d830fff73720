"""spoken_qa: the model answers the spoken test questions in text, exactly right or not."""

from __future__ import annotations

from collections.abc import Sequence

from eval.measurement import Measurement
from eval.metrics import accuracy, word_error_rate, words
from eval.tasks.breakdown import by_family, by_training_text
from eval.tasks.task import THE_MODEL, Beside, FamilyColumn, Figure, Outcome, Task, detail
from eval.test_set import TestItem
from speechgpt.answers import Answer

AS_TEXT = "the same questions as text"


def run(measurement: Measurement) -> Outcome:
    """Exactly right answers; also among the questions that the model transcribed correctly."""
    measurement.test_set.file("chats.jsonl")
    measurement.require_part("text")
    return text_answers(measurement, measurement.test_set.test, measurement.answers)


def text_answers(measurement: Measurement, items: list[TestItem], answers: Sequence[Answer]) -> Outcome:
    """The text of answers to some items."""
    gold, texts = [item.gold for item in items], [answer.text for answer in answers]
    transcripts = [answer.transcript for answer in answers]
    more = {}
    if any(transcript is not None for transcript in transcripts):
        questions = [item.question for item in items]
        understood = [i for i, item in enumerate(items) if words(transcripts[i]) == words(item.question)]
        more = {
            "transcript_wer": word_error_rate(questions, transcripts),
            "transcript_exact": accuracy(questions, transcripts),
            "accuracy_when_understood": accuracy([gold[i] for i in understood], [texts[i] for i in understood]),
        }
    more |= by_family(accuracy, items, gold, texts) | by_training_text(measurement.test_set, items, texts)
    details = [detail(item, transcript=a.transcript, text=a.text) for item, a in zip(items, answers)]
    return Outcome(accuracy(gold, texts), details, THE_MODEL, more)


TASK = Task(
    "spoken_qa",
    run,
    "accuracy",
    higher_is_better=True,
    version=2,
    figures=(
        Figure(
            "spoken_qa",
            "spoken question, exactly right answer in text",
            higher_is_better=True,
            beside=Beside("text_qa", "", AS_TEXT),
            headline=True,
        ),
        Figure(
            "spoken_qa_read",
            "... whose answer is in the LLM's training text",
            "read",
            higher_is_better=True,
            beside=Beside("text_qa", "read", AS_TEXT),
        ),
        Figure(
            "spoken_qa_unread",
            "... whose answer is not in it",
            "unread",
            higher_is_better=True,
            beside=Beside("text_qa", "unread", AS_TEXT),
        ),
    ),
    families=(FamilyColumn("spoken QA right"),),
)
