"""The notes of the report: how to read the figures, what limits them, and results that do not belong together."""

from __future__ import annotations

from pathlib import Path

from eval.report.tables import find
from eval.results import Result
from units.codebook import Codebook
from units.runtime.files.json_files import read_json
from units.runtime.provenance import fingerprint

STANDARD_ERRORS = (
    "Each value is followed by one standard error: binomial for exact answers, the jackknife over utterances for word "
    "error rates, where all spoken answers with the same words are left out together. It covers the choice of test "
    "questions, not the luck of one training seed. Two standard errors either way are about 95 %. A figure without a "
    "single error is shown as ± 0.0, which is no certainty when n is small."
)
EVALUATION_ASR = (
    "The evaluation ASR is an outside recogniser that sees neither the question nor the answer. It recognises only "
    "sentences of a closed grammar, in which each slot is open to its whole word class. Speech that fits no sentence "
    "gives no words, so all its words count as errors; speech that is close to a sentence may be recognised as that "
    "sentence. Its rates are those of a small vocabulary."
)
OWN_TEST_SET = (
    "The test set is the user's own. Whether its recordings were used in any training, or any choice was made by it, "
    "is not known here."
)
TEST_SPLIT = (
    "All figures except resynthesis are on the test split. No command of this run trains on it or makes a choice by it."
)
SYNTHETIC_VOICES = (
    "Every voice is a speech synthesiser's. In the training voices, the test questions ask for combinations that do "
    "not occur in the audio that the vocoder and the stages are trained on."
)
SHIPPED_ENCODER = (
    "The unit encoder that is shipped with the package was trained, without transcripts, on audio of the world of "
    "SEED=0, which contains most of this world's test questions."
)


def notes(run: Path, results: dict[str, Result]) -> list[str]:
    """The notes for a run folder, warnings first."""
    corpus = run / "corpus" / "corpus.json"
    found = [*warnings(run, results), STANDARD_ERRORS, EVALUATION_ASR]
    if not corpus.exists():
        return [*found, OWN_TEST_SET]
    facts = read_json(corpus, {"new_voice": str, "answer_voice": str})
    found += [TEST_SPLIT, SYNTHETIC_VOICES]
    if facts.get("seed", 0) != 0 and _features_of(run) == "starter":
        found.append(SHIPPED_ENCODER)
    found.append(_recall(results))
    found.append(
        f"The new voice is {facts['new_voice']}, which asks the same test questions. It is in no training set: not the "
        f"unit encoder's, the vocoder's or the stages'. All answers are in the voice {facts['answer_voice']}."
    )
    return found


def warnings(run: Path, results: dict[str, Result]) -> list[str]:
    """Results that do not belong together, or that are not final."""
    found = []
    measured = [result for task, result in results.items() if task != "resynthesis"]
    mixed = [name for name in ("model", "corpus", "device") if len({getattr(r, name) for r in measured}) > 1]
    if mixed:
        found.append(f"The results below are of more than one {' and '.join(mixed)}; run eval.run again.")
    limits = {result.limit for result in measured if result.limit is not None}
    if limits:
        allowed = " or ".join(map(str, sorted(limits)))
        found.append(f"This was a quick run: some tasks were limited to {allowed} examples.")
    vocoder = run / "model" / "vocoder"
    if "resynthesis" in results and vocoder.exists() and fingerprint(vocoder) not in results["resynthesis"].model:
        found.append("The resynthesis below is of another vocoder than the model's; run eval.resynthesis again.")
    return found


def _recall(results: dict[str, Result]) -> str:
    """How many test questions are in the LLM's training text."""
    read, unread = find(results, "text_qa", "read"), find(results, "text_qa", "unread")
    share = f"{read.n} of the {read.n + unread.n}" if read and unread else "most"
    return (
        f"The text LLM was trained on {share} test questions with their answers, word for word (corpus/text.txt), and "
        "stages 2 and 3 train on them as typed questions. Text QA is therefore mostly recall, and spoken QA shows how "
        "much of it remains when the question is spoken. Only the sentences of the family `say` have to be taken from "
        "the question itself."
    )


def _features_of(run: Path) -> str:
    """The network whose features became the run's units, "" if that is not known."""
    path = run / "unit_encoder" / "codebook.json"
    return Codebook.load(path).encoder if path.exists() else ""
