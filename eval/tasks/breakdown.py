"""A figure within parts of the test set: by family of questions, and by what the text LLM was trained on."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from eval.metrics import Score, accuracy
from eval.test_set import TestItem, TestSet


def by_family(
    metric: Callable[..., Score],
    items: Sequence[TestItem],
    references: Sequence,
    given: Sequence,
    clusters: Sequence[Hashable] | None = None,
) -> dict[str, Score]:
    """The metric within each family, named "family/NAME"; empty where families are unknown."""
    found = {}
    for name in dict.fromkeys(item.family for item in items if item.family):
        members = [i for i, item in enumerate(items) if item.family == name]
        among = () if clusters is None else ([clusters[i] for i in members],)
        found[f"family/{name}"] = metric([references[i] for i in members], [given[i] for i in members], *among)
    return found


def by_training_text(test_set: TestSet, items: Sequence[TestItem], texts: Sequence) -> dict[str, Score]:
    """Exact answers, split by whether question and answer are in the LLM's training text: "read" and "unread".

    Empty where the training text is unknown.
    """
    if not test_set.has("text.txt"):
        return {}
    lines = test_set.text_lines()
    found = {}
    for name, inside in (("read", True), ("unread", False)):
        members = [i for i, item in enumerate(items) if (item.line in lines) is inside]
        found[name] = accuracy([items[i].gold for i in members], [texts[i] for i in members])
    return found
