"""answer_speech: the evaluation ASR transcribes the spoken answers, which are compared with the model's text."""

from __future__ import annotations

from pathlib import Path

from eval.measurement import Measurement
from eval.metrics import accuracy, character_error_rate, word_error_rate, words
from eval.results import save_details
from eval.tasks.breakdown import by_family
from eval.tasks.task import ASR_ANSWER_VOICE, FamilyColumn, Figure, Outcome, Task, detail
from units.audio import RECEPTIVE_FIELD, save_wav
from units.runtime.files.atomic import written_whole
from units.runtime.files.file_names import FileNames

KEPT = "answers.jsonl"  # lists them, with the names of their wavs


def run(measurement: Measurement) -> Outcome:
    """Word error rate of the spoken answers against the model's own text; also against the right answers."""
    asr, test_set = measurement.asr, measurement.test_set
    measurement.require_part("wav")
    items, answers, recognised = test_set.test, measurement.answers, measurement.recognised
    texts = [answer.text for answer in answers]
    # one sentence that answers many questions is well or badly spoken each time, so its answers are one cluster
    clusters = [" ".join(words(text)) for text in texts]
    has_speech = [answer.wav is not None and len(answer.wav) > 0 for answer in answers]
    meant, heard = asr.comparable(texts), asr.comparable(recognised)
    more = {
        "exact": accuracy(meant, heard, clusters),
        "cer": character_error_rate(meant, heard, clusters),
        "first_candidate": word_error_rate(meant, asr.comparable(measurement.first_recognised), clusters),
        "gave_speech": accuracy(["yes"] * len(items), ["yes" if spoke else "no" for spoke in has_speech]),
        **by_family(word_error_rate, items, meant, heard, clusters),
    }
    if test_set.has("chats.jsonl"):
        gold = asr.comparable([item.gold for item in items])
        more["wer_against_gold"] = word_error_rate(gold, heard, clusters)
        more["exact_against_gold"] = accuracy(gold, heard, clusters)
    rows = zip(items, texts, recognised, measurement.first_recognised)
    details = [detail(item, text=text, heard=spoken, heard_first=first) for item, text, spoken, first in rows]
    _keep_answers(measurement)
    return Outcome(word_error_rate(meant, heard, clusters), details, asr.name, more)


def _keep_answers(measurement: Measurement) -> None:
    """Keep questions with their answers, right or wrong: wavs and transcripts; of each family the first, then others.

    Beside them `wav.scp` and `text`, Kaldi's lists, by which VERSA and other programs score the answers' sound.
    """
    items = measurement.test_set.test
    first: dict[str, int] = {}
    for i, item in enumerate(items):
        first.setdefault(item.family, i)
    rest = [i for i in range(len(items)) if i not in first.values()]
    names = FileNames(measurement.keep, [".question.wav", ".answer.wav"], [KEPT], slash="_")
    records = []
    for i in sorted([*first.values(), *rest][: measurement.kept]):
        item, answer = items[i], measurement.answers[i]
        question_wav = answer_wav = None
        if item.id not in measurement.refused:
            question_wav = save_wav(names.path(item.id, ".question.wav"), item.wav())
        if answer.wav is not None and len(answer.wav) >= RECEPTIVE_FIELD:  # load_wav refuses shorter ones
            answer_wav = save_wav(names.path(item.id, ".answer.wav"), answer.wav)
        kept = detail(item, transcript=answer.transcript, text=answer.text, heard=measurement.recognised[i])
        records.append({**kept, "question_wav": _below(names, question_wav), "answer_wav": _below(names, answer_wav)})
    save_details(measurement.keep / KEPT, records)
    _save_kaldi(measurement.keep, [record for record in records if record["answer_wav"]])


def _save_kaldi(folder: Path, records: list[dict]) -> None:
    """Write wav.scp (absolute paths) and text, a line for each spoken answer; ids without spaces."""
    for name, field in (("wav.scp", "answer_wav"), ("text", "text")):
        with written_whole(folder / name) as file:
            for record in records:
                value = (
                    (folder / record[field]).resolve() if name == "wav.scp" else " ".join((record[field] or "").split())
                )
                file.write(f"{'_'.join(record['id'].split())} {value}\n")


def _below(names: FileNames, path: Path | None) -> str | None:
    return None if path is None else path.relative_to(names.folder).as_posix()


TASK = Task(
    "answer_speech",
    run,
    "wer",
    higher_is_better=False,
    version=2,
    figures=(
        Figure("answer_wer", "spoken answer against the model's own text", beside=ASR_ANSWER_VOICE, headline=True),
        Figure(
            "first_candidate_wer",
            "... of the first candidate, without self-verification",
            "first_candidate",
            beside=ASR_ANSWER_VOICE,
        ),
        Figure(
            "answer_gold_wer", "spoken answer against the right answer", "wer_against_gold", beside=ASR_ANSWER_VOICE
        ),
    ),
    families=(FamilyColumn("answer speech WER"),),
)
