"""labels: what kind of thing is said, or how: intent, emotion, .. by instruction, right if the response is the label.

As BLSP was shown on intents and emotions (arXiv 2309.00916, section 4; BLSP-Emo, 2406.03872).
"""

from __future__ import annotations

from collections.abc import Sequence

from eval.measurement import Measurement
from eval.metrics import Score, accuracy, words
from eval.tasks.instructed.recordings import responses
from eval.tasks.task import THE_MODEL, Figure, Outcome, Task


def run(measurement: Measurement) -> Outcome:
    """Share of responses that are the right label in plain words.

    Also that of responses that name it and no other label (`named`), of those that name no label or several
    (`unusable`), and the exact share for each right label.
    """
    rows, replies = responses(measurement, "label")
    right = [row.label or "" for row in rows]
    allowed = [row.labels or tuple(dict.fromkeys(right)) for row in rows]
    chosen = [named_label(reply, labels) for reply, labels in zip(replies, allowed)]
    figures = {"named": accuracy(right, chosen), "unusable": _share([one is None for one in chosen])}
    for label in dict.fromkeys(right):
        members = [i for i, one in enumerate(right) if one == label]
        figures[f"label/{label}"] = accuracy([right[i] for i in members], [replies[i] for i in members])
    details = [
        {"id": row.item.id, "label": row.label, "response": reply, "named": one}
        for row, reply, one in zip(rows, replies, chosen)
    ]
    return Outcome(accuracy(right, replies), details, THE_MODEL, figures)


def named_label(reply: str, labels: Sequence[str]) -> str | None:
    """The one label whose words stand in a reply, in order; None if there is none, or more than one.

    A label inside another one that is found does not count: "very sad" is not "sad".
    """
    said = f" {' '.join(words(reply))} "
    spelled = {label: f" {' '.join(words(label))} " for label in labels}
    found = [label for label, text in spelled.items() if text.strip() and text in said]
    found = [one for one in found if not any(spelled[one] in spelled[other] for other in found if other != one)]
    return found[0] if len(found) == 1 else None


def _share(true: Sequence[bool]) -> Score:
    return accuracy(["yes"] * len(true), ["yes" if one else "no" for one in true])


TASK = Task(
    "labels",
    run,
    "accuracy",
    higher_is_better=True,
    version=1,
    figures=(
        Figure("labels", "intent, emotion, ..: the response is the right label", higher_is_better=True),
        Figure("labels_named", "... the response names it alone", "named", higher_is_better=True),
        Figure("labels_unusable", "... the response names no label, or several", "unusable"),
    ),
    optional=True,
)
