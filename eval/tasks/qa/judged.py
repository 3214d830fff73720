"""judged: a language model grades the replies from 1 to 5, as text and as an evaluation ASR understands them.

InstructS2S-Eval (LLaMA-Omni, arXiv 2409.06666): S2TIF is the grade of the text, S2SIF that of the transcript of the
spoken reply.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from eval.judge import GRADES, LEAST, Verdict
from eval.likelihood.pairs import mean_score
from eval.measurement import Measurement
from eval.metrics import Score
from eval.tasks.task import Figure, Outcome, Task, detail
from eval.test_set import NotMeasured

EMPTY = "empty"  # a reply without words has the lowest grades, without a request


def run(measurement: Measurement) -> Outcome:
    """Mean content of the text replies; also their style, both of the spoken replies, and what was not judged."""
    judge, items = measurement.judge, measurement.test_set.test
    measurement.require_part("text")
    texts = [answer.text or "" for answer in measurement.answers]
    sides = {"": _judged(measurement, [item.question for item in items], texts)}
    if measurement.asr_name and any(answer.wav is not None for answer in measurement.answers):
        sides["speech/"] = _judged(measurement, [item.question for item in items], measurement.recognised)
    figures: dict[str, Score] = {}
    for side, verdicts in sides.items():
        for grade in GRADES:
            figures[f"{side}{grade}"] = mean_score(v.grades[grade] for v in verdicts if v.grades)
        figures |= _shares(side, verdicts)
    if not figures["content"].n:
        reasons = Counter(verdict.unjudged for verdict in sides[""])
        raise NotMeasured(f"the judge {judge.name} judged none of {len(items)} replies: {dict(reasons)}")
    details = []
    for i, item in enumerate(items):
        found = {f"{side}{name}": value for side, verdicts in sides.items() for name, value in _shown(verdicts[i])}
        heard = measurement.recognised[i] if "speech/" in sides else None
        details.append({**detail(item, text=texts[i], heard=heard), **found})
    return Outcome(figures.pop("content"), details, f"judge {judge.name}", figures)


def _judged(measurement: Measurement, questions: Sequence[str], replies: Sequence[str]) -> list[Verdict]:
    """A verdict for each reply; those without words are not shown to the judge."""
    asked = [i for i, reply in enumerate(replies) if any(map(str.isalnum, reply))]
    verdicts = [Verdict(dict.fromkeys(GRADES, LEAST), EMPTY, 0) for _ in replies]
    for i, verdict in zip(asked, measurement.judge.grades([(questions[i], replies[i]) for i in asked])):
        verdicts[i] = verdict
    return verdicts


def _shares(side: str, verdicts: Sequence[Verdict]) -> dict[str, Score]:
    """Shares of replies that have no words, and that the judge gave no grade, by reason."""
    total = len(verdicts)
    reasons = Counter(verdict.unjudged for verdict in verdicts if verdict.unjudged)
    lost = sum(count for reason, count in reasons.items() if reason != EMPTY)
    counts = {EMPTY: reasons.get(EMPTY, 0), "unjudged": lost}
    counts |= {f"unjudged/{reason}": count for reason, count in reasons.items() if reason != EMPTY}
    counts["asked_again"] = sum(verdict.tries > 1 for verdict in verdicts)
    return {f"{side}{name}": Score(count / total, None, total) for name, count in counts.items()}


def _shown(verdict: Verdict) -> list[tuple[str, int | str]]:
    return [*verdict.grades.items(), ("unjudged", verdict.unjudged)]


TASK = Task(
    "judged",
    run,
    "content",
    higher_is_better=True,
    version=1,
    figures=(
        Figure("judged_text", "content of the text reply, 1 to 5 by a judge", unit="", higher_is_better=True),
        Figure("judged_text_style", "... its style", "style", unit="", higher_is_better=True),
        Figure(
            "judged_speech", "content of the spoken reply, 1 to 5", "speech/content", unit="", higher_is_better=True
        ),
        Figure("judged_speech_style", "... its style", "speech/style", unit="", higher_is_better=True),
        Figure("judged_empty", "replies without words, graded 1", "empty"),
        Figure("judged_lost", "replies without a grade, left out", "unjudged"),
    ),
    optional=True,
)
