"""What the tasks on pairs share: score the sounds, average by the suite's rule, and the rows of the report."""

from __future__ import annotations

from eval.likelihood.pairs import SHORTER, Suite, outcome, suite_scores, value_of
from eval.likelihood.scoring import scored_suite
from eval.likelihood.submitted import SubmittedScores
from eval.measurement import Measurement
from eval.metrics import Score
from eval.tasks.task import NO_LISTENER, Figure, Outcome

METRIC = "accuracy"


def measured(measurement: Measurement, suite: Suite) -> Outcome:
    """How often the right sound of a pair is the more likely one, per token (the main figure) and as a whole.

    Raises:
        NotMeasured: the model does not score sounds.
        SuiteError: a submission does not fit the suite.
        NothingScored: the model refused every sound.
    """
    scorer = measurement.scorer
    suite = suite.limited(measurement.test_set.limit)
    if isinstance(scorer, SubmittedScores):
        scores = scorer.scores(suite)
    else:
        scores, refused = scored_suite(scorer, measurement.model.name, suite, measurement.out)
        measurement.refused |= {refusal.id: refusal for refusal in refused}
    figures = suite_scores(suite, scores)
    kept = [pair for pair in suite.pairs if pair.right in scores and pair.wrong in scores]
    if len(kept) < len(suite.pairs):
        lost = len(suite.pairs) - len(kept)
        figures["pairs_lost"] = Score(float(lost), None, len(suite.pairs))
        print(f"{suite.name}: {lost} of {len(suite.pairs)} pairs have no score and are left out", flush=True)
    details = []
    for pair in kept:
        right, wrong = scores[pair.right], scores[pair.wrong]
        won = {name: outcome(value_of(right, name), value_of(wrong, name)) for name in ("mean", "sum")}
        details.append({"right": pair.right, "wrong": pair.wrong, "bands": list(pair.bands), **won})
    return Outcome(figures.pop("mean"), details, NO_LISTENER, figures)


def both_normalisations(name: str, meaning: str) -> tuple[Figure, ...]:
    """The rows of the report for the main figure, for the sum, and for its baseline."""
    return (
        Figure(name, f"{meaning}, log-likelihood per unit", higher_is_better=True),
        Figure(f"{name}_sum", "... of the whole sequence", "sum", higher_is_better=True),
        Figure(
            f"{name}_shorter",
            "... if every unit were equally likely: the baseline of the sum",
            SHORTER,
            higher_is_better=None,
        ),
    )
