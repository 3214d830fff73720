"""originals: the evaluation ASR on the original recordings.

Its error there is the lowest that a model's speech could reach, and is compared with the model's own transcripts.
"""

from __future__ import annotations

from eval.measurement import Measurement
from eval.metrics import word_error_rate
from eval.tasks.task import Outcome, Task, detail
from eval.test_set import TestItem

# figure -> the manifest whose recordings it is measured on
MANIFESTS = {"wer_new_voice": "test_new_voice.jsonl", "wer_answer_voice": "answers_unseen.jsonl"}


def run(measurement: Measurement) -> Outcome:
    """Transcribe the test recordings, and those of MANIFESTS where they exist."""
    asr, test_set = measurement.asr, measurement.test_set
    records = {"test": _recognised(measurement, test_set.test)}
    for figure, manifest in MANIFESTS.items():
        if test_set.has(manifest):
            records[figure] = _recognised(measurement, test_set.items(manifest))
    scores = {
        name: word_error_rate(*(asr.comparable([record[key] for record in some]) for key in ("question", "heard")))
        for name, some in records.items()
    }
    details = [record for some in records.values() for record in some]
    return Outcome(scores.pop("test"), details, asr.name, scores)


def _recognised(measurement: Measurement, items: list[TestItem]) -> list[dict]:
    texts = measurement.asr.transcribe_all(measurement.over_wavs(list, items, "reading"))
    return [detail(item, heard=text) for item, text in zip(items, texts)]


TASK = Task("originals", run, "wer", higher_is_better=False, version=2)
