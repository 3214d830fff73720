"""translation: spoken sentences translated by instruction, scored by BLEU and chrF (sacrebleu, arXiv 1804.08771).

As BLSP was shown on CoVoST 2 and MuST-C (arXiv 2309.00916, section 4). With several target languages the main figure is
the mean of their BLEUs.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from importlib import metadata

from eval.measurement import Measurement
from eval.metrics import Score
from eval.tasks.instructed.recordings import responses
from eval.tasks.task import Figure, Outcome, Task
from eval.test_set import NotMeasured

TOKENIZERS = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}  # sacrebleu's; 13a for the others
BOOTSTRAPS = 1000  # resamples for the standard error, by sacrebleu's own seed
QUANTILE = 1.96  # half a confidence interval of 95 %, in standard errors


def listener(measurement: Measurement) -> str:
    """Who scores. Raises NotMeasured if sacrebleu is not installed."""
    if importlib.util.find_spec("sacrebleu") is None:
        raise NotMeasured("sacrebleu is not installed: pip install '.[eval]'")
    return f"sacrebleu {metadata.version('sacrebleu')}"


def run(measurement: Measurement) -> Outcome:
    """BLEU of the whole set, 0 to 100; also chrF, both by language, and responses without words."""
    name = listener(measurement)
    rows, replies = responses(measurement, "translation")
    figures: dict[str, Score] = {}
    by_language: dict[str, tuple[Score, Score]] = {}
    for lang in dict.fromkeys(row.lang for row in rows):
        pairs = [(row.translation or "", reply) for row, reply in zip(rows, replies) if row.lang == lang]
        by_language[lang] = corpus_scores([right for right, _ in pairs], [reply for _, reply in pairs], lang)
        if len({row.lang for row in rows}) > 1:
            figures |= dict(zip((f"bleu/{lang}", f"chrf/{lang}"), by_language[lang]))
    figures["chrf"] = _mean([chrf for _, chrf in by_language.values()])
    empty = sum(not any(map(str.isalnum, reply)) for reply in replies)
    figures["empty"] = Score(empty / len(replies), None, len(replies))
    details = [
        {"id": row.item.id, "lang": row.lang, "translation": row.translation, "response": reply}
        for row, reply in zip(rows, replies)
    ]
    return Outcome(_mean([bleu for bleu, _ in by_language.values()]), details, name, figures)


def corpus_scores(references: Sequence[str], replies: Sequence[str], lang: str) -> tuple[Score, Score]:
    """BLEU and chrF of a corpus, 0 to 100, with standard errors by bootstrap.

    Args:
        references: one for each reply.
        lang: of both, ISO 639-1; chooses BLEU's tokenizer.

    Raises:
        NotMeasured: the tokenizer of that language is not installed.
    """
    from sacrebleu.metrics import BLEU, CHRF

    try:
        bleu = BLEU(tokenize=TOKENIZERS.get(lang, "13a"))
    except (RuntimeError, ImportError) as error:
        raise NotMeasured(f"BLEU for {lang!r} needs a tokenizer: {str(error).strip().splitlines()[0]}") from error
    found = []
    for metric in (bleu, CHRF()):
        times = BOOTSTRAPS if len(replies) > 1 else 1
        score = metric.corpus_score(list(replies), [list(references)], n_bootstrap=times)
        error = float(score._ci) / QUANTILE if times > 1 and math.isfinite(score._ci) else None
        found.append(Score(float(score.score), error, len(replies)))
    return found[0], found[1]


def _mean(scores: Sequence[Score]) -> Score:
    if len(scores) == 1:
        return scores[0]
    errors = [score.standard_error for score in scores]
    known = [error for error in errors if error is not None]
    error = math.sqrt(sum(one**2 for one in known)) / len(scores) if len(known) == len(scores) else None
    return Score(sum(score.value or 0.0 for score in scores) / len(scores), error, sum(score.n for score in scores))


TASK = Task(
    "translation",
    run,
    "bleu",
    higher_is_better=True,
    version=1,
    figures=(
        Figure("translation_bleu", "spoken sentences translated by instruction: BLEU", unit="", higher_is_better=True),
        Figure("translation_chrf", "... chrF", "chrf", unit="", higher_is_better=True),
        Figure("translation_empty", "... without words", "empty"),
    ),
    optional=True,
    listener=listener,
)
