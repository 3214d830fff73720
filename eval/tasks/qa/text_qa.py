"""text_qa: the test questions as text. Measures what the model answers when no speech recognition is involved."""

from __future__ import annotations

from eval.measurement import Measurement
from eval.metrics import accuracy
from eval.tasks.breakdown import by_family, by_training_text
from eval.tasks.task import NO_LISTENER, FamilyColumn, Figure, Outcome, Task, detail


def run(measurement: Measurement) -> Outcome:
    """Exactly right answers."""
    measurement.test_set.file("chats.jsonl")
    items = measurement.test_set.test
    texts = measurement.over_texts(measurement.chat, {item.id: item.question for item in items}, "chatting")
    gold = [item.gold for item in items]
    more = by_family(accuracy, items, gold, texts) | by_training_text(measurement.test_set, items, texts)
    details = [detail(item, text=text) for item, text in zip(items, texts)]
    return Outcome(accuracy(gold, texts), details, NO_LISTENER, more)


TASK = Task(
    "text_qa",
    run,
    "accuracy",
    higher_is_better=True,
    version=2,
    figures=(
        Figure("text_qa", "the question as text, exactly right answer", higher_is_better=True, headline=True),
        Figure("text_qa_read", "... whose answer is in the LLM's training text", "read", higher_is_better=True),
        Figure("text_qa_unread", "... whose answer is not in it", "unread", higher_is_better=True),
    ),
    families=(FamilyColumn("text QA right"),),
)
