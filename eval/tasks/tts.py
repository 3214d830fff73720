"""tts: the model reads the right answers aloud, or the questions without answers; the evaluation ASR transcribes."""

from __future__ import annotations

from eval.measurement import Measurement
from eval.metrics import accuracy, word_error_rate
from eval.tasks.task import ASR_ANSWER_VOICE, Figure, Outcome, Task
from eval.test_set import spread

NUM_SENTENCES = 60


def run(measurement: Measurement) -> Outcome:
    """Word error rate; also of sentences that are in the training audio, and of those that are not."""
    asr, test_set = measurement.asr, measurement.test_set
    limit = min(NUM_SENTENCES, test_set.limit or NUM_SENTENCES)
    sentences = spread(list(dict.fromkeys(item.gold or item.question for item in test_set.test)), limit)
    spoken = measurement.over(measurement.say, sentences, "speaking")
    recognised = asr.transcribe_all([answer.wav for answer in spoken])
    right, heard = asr.comparable(sentences), asr.comparable(recognised)
    more = {"exact": accuracy(right, heard)}
    if "answer_voice" in test_set.facts:
        trained = test_set.trained_sentences()
        for name, inside in (("trained_sentences", True), ("unheard_sentences", False)):
            members = [i for i, sentence in enumerate(sentences) if (sentence in trained) is inside]
            more[f"wer_{name}"] = word_error_rate([right[i] for i in members], [heard[i] for i in members])
    details = [{"text": sentence, "heard": text} for sentence, text in zip(sentences, recognised)]
    return Outcome(word_error_rate(right, heard), details, asr.name, more)


TASK = Task(
    "tts",
    run,
    "wer",
    higher_is_better=False,
    version=2,
    figures=(
        Figure("tts_wer", "sentence read aloud: word error rate", beside=ASR_ANSWER_VOICE),
        Figure(
            "tts_unheard_wer",
            "... sentences that are not in the training audio",
            "wer_unheard_sentences",
            beside=ASR_ANSWER_VOICE,
        ),
    ),
)
