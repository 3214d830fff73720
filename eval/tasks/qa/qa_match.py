"""qa_match: is an accepted answer in the reply? LlamaQuestions, WebQuestions, TriviaQA (Nachmani et al. 2305.15255).

S->T looks for it in the text of the reply, S->S in what the evaluation ASR understands of the spoken one.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence

from eval.measurement import Measurement
from eval.metrics import Score, accuracy
from eval.tasks.task import THE_MODEL, Figure, Outcome, Task, detail

ARTICLES = re.compile(r"\b(a|an|the)\b")


@functools.lru_cache(maxsize=1)
def _english() -> Callable[[str], str]:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return EnglishTextNormalizer({})


def normalised(text: str | None) -> str:
    """A text for matching: by Whisper's English normaliser (numbers as digits), without articles."""
    return " ".join(ARTICLES.sub(" ", _english()(text or "")).split())


def has_answer(reply: str | None, answers: Sequence[str], whole_words: bool = False) -> bool:
    """Whether a normalised answer occurs in the normalised reply.

    Args:
        reply: of the model.
        answers: accepted ones; any of them is enough.
        whole_words: "2" is not in "12"; the usual match takes that as right.
    """
    edge = " " if whole_words else ""
    where = f"{edge}{normalised(reply)}{edge}"
    return any(f"{edge}{found}{edge}" in where for answer in answers if (found := normalised(answer)))


def run(measurement: Measurement) -> Outcome:
    """Share of replies with an accepted answer, as text; also as speech, in whole words, and replies without words."""
    accepted = measurement.test_set.accepted
    items = [item for item in measurement.test_set.test if item.id in accepted]
    measurement.require_part("text")
    place = {item.id: i for i, item in enumerate(measurement.test_set.test)}
    texts = [measurement.answers[place[item.id]].text for item in items]
    answers = [accepted[item.id] for item in items]
    figures = _matches("", texts, answers)
    heard: list[str | None] = [None] * len(items)
    if measurement.asr_name and any(answer.wav is not None for answer in measurement.answers):
        heard = [measurement.recognised[place[item.id]] for item in items]
        figures |= _matches("speech", heard, answers)
    details = [
        {**detail(item, text=text, heard=spoken), "answers": list(right), "right": has_answer(text, right)}
        for item, text, spoken, right in zip(items, texts, heard, answers)
    ]
    return Outcome(figures.pop(""), details, measurement.asr_name or THE_MODEL, figures)


def _matches(side: str, replies: Sequence[str | None], answers: Sequence[Sequence[str]]) -> dict[str, Score]:
    def share(right: Sequence[bool]) -> Score:
        return accuracy(["yes"] * len(right), ["yes" if one else "no" for one in right])

    empty = [not normalised(reply) for reply in replies]
    join = f"{side}/" if side else ""
    return {
        side: share([has_answer(reply, right) for reply, right in zip(replies, answers)]),
        f"{join}whole_words": share([has_answer(reply, right, True) for reply, right in zip(replies, answers)]),
        f"{join}empty": share(empty),
    }


TASK = Task(
    "qa_match",
    run,
    "accuracy",
    higher_is_better=True,
    version=1,
    figures=(
        Figure("qa_text", "an accepted answer is in the text reply (S->T)", higher_is_better=True),
        Figure("qa_speech", "... in the spoken reply, as recognised (S->S)", "speech", higher_is_better=True),
        Figure("qa_text_words", "... in the text reply, as whole words", "whole_words", higher_is_better=True),
        Figure("qa_empty", "replies without words", "empty"),
    ),
    optional=True,
)
