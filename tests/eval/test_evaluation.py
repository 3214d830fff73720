"""Whole evaluations of a model that answers from a table, and what is skipped, refused or already finished."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from spoken_test_set import ANSWERS, CHATS, MISSPOKEN, QUESTIONS, LookUpModel, Speak, TextOnly

from eval.asr.recogniser import GrammarASR
from eval.evaluation import UnknownTask, evaluate, tasks_of
from eval.measurement import EvalReason, EverythingRefused, LostExamples, Measurement
from eval.metrics import Score, word_error_rate
from eval.model import NoAnswer, as_speech_model
from eval.report import card
from eval.report.tables import NOT_RUN
from eval.results import load_details, load_result
from eval.tasks import TASKS
from eval.test_set import TestSet
from units.audio import AudioReason, save_wav
from units.corpus.manifest import Utterance, read_manifest, write_manifest

Printed = pytest.CaptureFixture[str]
ALL = {"originals", "asr", "spoken_qa", "answer_speech", "new_voice", "text_qa", "tts", "speed"}
ASKED = {"latency", "dnsmos", "plcmos", "utmos", "speaker_similarity"}


def test_every_task_is_named_once() -> None:
    assert [task.name for task in TASKS] == list(dict.fromkeys(task.name for task in TASKS))
    assert {task.name for task in TASKS if not task.optional} == ALL
    assert [task.name for task in tasks_of(["tts", "asr"])] == ["tts", "asr"]
    assert {task.name for task in TASKS} - {task.name for task in tasks_of(None)} == ASKED
    with pytest.raises(UnknownTask, match="singing.*originals, asr"):
        tasks_of(["singing"])


def test_a_whole_evaluation(measurement: Measurement, tmp_path: Path) -> None:
    out = tmp_path / "run" / "results"
    found = evaluate(measurement, out)
    assert set(found) == ALL | {"pace"}
    assert 1 < found["pace"].score < 6 and found["pace"].more["no_sound"].value == pytest.approx(2 / 6)
    assert found["asr"].score == found["new_voice"].score == 0
    assert found["spoken_qa"].main == Score(pytest.approx(4 / 6), pytest.approx(math.sqrt(2 / 9 / 6)), 6)
    assert found["spoken_qa"].more["family/sum"].value == 0
    assert found["spoken_qa"].more["family/town"].value == 1
    assert found["text_qa"].more["read"].n == 5 and found["text_qa"].more["unread"] == Score(1.0, 0.0, 1)
    assert found["asr"].more["cer"] == Score(0.0, 0.0, 6)
    assert (found["asr"].corpus, found["asr"].device) == (measurement.test_set.name, "cpu")
    assert found["answer_speech"].more["gave_speech"].value == pytest.approx(4 / 6)
    assert found["answer_speech"].more["wer_against_gold"].value >= 6 / 21  # the two unspoken sums are six lost words
    spoken = found["answer_speech"]
    assert (
        spoken.more["first_candidate"].value >= spoken.main.value + 2 / 15
    )  # one answer of 3 words of 15 is misspoken
    assert found["tts"].more["wer_trained_sentences"].n == 1 and found["tts"].more["wer_unheard_sentences"].n == 5
    assert found["originals"].more["wer_answer_voice"].n == 1
    assert found["new_voice"].more["family/sum"].n == found["new_voice"].more["spoken_qa_family/sum"].n == 2
    assert found["speed"].more["units_per_second"].value > 0
    assert len(load_details(out / "asr.details.jsonl")) == 6
    kept = load_details(out / "answers" / "answers.jsonl")
    assert len(kept) == 5 and len({record["family"] for record in kept}) == 5
    assert len(list((out / "answers").glob("*.answer.wav"))) == 4  # the first sum is not spoken
    assert all((out / "answers" / record["question_wav"]).is_file() for record in kept)
    assert [record["answer_wav"] is None for record in kept] == [record["family"] == "sum" for record in kept]
    lists = [
        dict(line.split(" ", 1) for line in (out / "answers" / n).read_text().splitlines()) for n in ("wav.scp", "text")
    ]
    spoken_ids = [record["id"] for record in kept if record["answer_wav"]]
    assert [list(one) for one in lists] == [spoken_ids, spoken_ids] and all(
        Path(path).is_file() for path in lists[0].values()
    )
    assert list(lists[1].values()) == [record["text"] for record in kept if record["answer_wav"]]
    assert not (out / "refused.jsonl").exists()


def test_the_report_of_an_evaluation(measurement: Measurement, tmp_path: Path, capsys: Printed) -> None:
    run = tmp_path / "run"
    evaluate(measurement, run / "results")
    (run / "stage1").mkdir()
    log = [json.dumps({"step": step, "loss": 2 / step, "seconds": step}) + "\n" for step in (1, 2, 3)]
    (run / "stage1" / "log.jsonl").write_text("".join(log))
    (run / "started").touch()
    capsys.readouterr()
    card.main(run, run / "report", name="toy")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("toy: asr_wer=0.000 spoken_qa=0.667 answer_wer=")
    assert "resynth_wer=not-run minutes=" in lines[-1]
    assert "answer.wav" in lines[-2] and "report.html" in lines[-3]
    page = (run / "report" / "report.html").read_text()
    assert page.count("<audio") == 9 and page.count("data:image/png") == 2 and NOT_RUN in page
    assert "://" not in page and 'src="data:' in page
    assert "66.7 ± 19.2 %" in (run / "report" / "REPORT.md").read_text()


def test_results_are_kept_for_one_model_corpus_and_device(
    measurement: Measurement, corpus: Path, tmp_path: Path, speak: Speak
) -> None:
    table = LookUpModel(speak)

    def calls(name: str | None, device: str = "cpu") -> int:
        table.name = name
        before = table.calls
        again = Measurement(as_speech_model(table), TestSet(corpus), None, tmp_path, device)
        evaluate(again, tmp_path / "results", ["asr"])
        return table.calls - before

    assert calls("made 1") == 1 and calls("made 1") == 0  # finished
    assert calls("made 2") == 1  # another model
    assert calls("made 2", "mps") == 1  # another device
    (corpus / "asr_grammar.jsgf").write_text("another grammar")
    assert calls("made 2") == 1
    assert calls(None) == 1 and calls(None) == 1  # results of a model without a name are not kept


def test_a_task_that_cannot_be_measured_is_skipped(
    corpus: Path, asr: GrammarASR, tmp_path: Path, capsys: Printed
) -> None:
    smallest = Measurement(as_speech_model(TextOnly()), TestSet(corpus), asr, tmp_path / "kept")
    found = evaluate(smallest, tmp_path / "results")
    assert set(found) == {"originals", "spoken_qa", "speed"} and found["spoken_qa"].codebook == "-"
    assert found["spoken_qa"].score == pytest.approx(1 / 6) and "transcript_wer" not in found["spoken_qa"].more
    assert "units_per_second" not in found["speed"].more
    skipped = [line.split(" skipped: ") for line in capsys.readouterr().out.splitlines() if " skipped: " in line]
    reasons = {task.strip(): reason for task, reason in skipped}
    assert set(reasons) == {"asr", "answer_speech", "new_voice", "text_qa", "tts"}
    assert "smallest" in reasons["asr"] and "transcribe" in reasons["asr"]
    assert "wav" in reasons["answer_speech"]
    assert "say" in reasons["tts"]


def test_a_model_whose_answers_are_no_answers_is_refused(corpus: Path, asr: GrammarASR, tmp_path: Path) -> None:
    wrong = as_speech_model(SimpleNamespace(answer=lambda wav: "text"))
    measurement = Measurement(wrong, TestSet(corpus), asr, tmp_path / "kept")
    with pytest.raises(NoAnswer, match="str"):
        evaluate(measurement, tmp_path / "wrong")


def test_a_model_that_loses_examples_or_refuses_all_is_refused(corpus: Path, tmp_path: Path) -> None:
    def refuse(wav: np.ndarray) -> str:
        raise ValueError("too long")

    class Loses:
        def transcribe_batch(self, wavs):
            return ["one"]

    for model, error in ((Loses(), LostExamples), (SimpleNamespace(transcribe=refuse), EverythingRefused)):
        with pytest.raises(error):
            evaluate(
                Measurement(as_speech_model(model), TestSet(corpus), None, tmp_path), tmp_path / "results", ["asr"]
            )


def test_a_refused_utterance_counts_as_wrong_and_is_listed(
    corpus: Path, measurement: Measurement, tmp_path: Path, capsys: Printed
) -> None:
    before = evaluate(measurement, tmp_path / "before", ["asr", "spoken_qa"])
    utterances = read_manifest(corpus / "test.jsonl")
    utterances[1].audio.write_text("no audio")
    utterances[2].audio.unlink()
    again = Measurement(measurement.model, measurement.test_set, measurement.asr, tmp_path / "kept")
    found = evaluate(again, tmp_path / "results")
    assert found["asr"].n == before["asr"].n and found["asr"].score > before["asr"].score
    assert found["spoken_qa"].score < before["spoken_qa"].score
    details = load_details(tmp_path / "results" / "spoken_qa.details.jsonl")
    assert [detail["transcript"] is None for detail in details] == [False, True, True, False, False, False]
    assert set(found) == ALL | {"pace"}
    rows = load_details(tmp_path / "results" / "refused.jsonl")
    assert [row["id"] for row in rows] == [utterances[1].id, utterances[2].id]
    assert [row["reason"] for row in rows] == [AudioReason.UNREADABLE, AudioReason.NOT_FOUND]
    assert [row["audio"] for row in rows] == [str(utterances[1].audio), str(utterances[2].audio)]
    printed = capsys.readouterr().out
    assert "2 utterances" in printed and "refused.jsonl" in printed
    assert found["speed"].n == 4


def test_what_a_model_refuses_has_a_code(corpus: Path, tmp_path: Path, speak: Speak) -> None:
    class Choosy(LookUpModel):
        def transcribe_batch(self, wavs):
            if any(len(wav) == len(speak(QUESTIONS[3])) for wav in wavs):
                raise ValueError("longer than the context")
            return super().transcribe_batch(wavs)

    measurement = Measurement(as_speech_model(Choosy(speak)), TestSet(corpus), None, tmp_path)
    found = evaluate(measurement, tmp_path / "results", ["asr"])
    (refusal,) = measurement.refused.values()
    assert (refusal.reason, refusal.detail) == (EvalReason.MODEL_REFUSED, "longer than the context")
    assert found["asr"].more["exact"].value == pytest.approx(5 / 6)


def test_a_manifest_alone_measures_transcription(
    corpus: Path, measurement: Measurement, speak: Speak, tmp_path: Path, capsys: Printed
) -> None:
    """Its utterances may be segments of one file."""
    texts = QUESTIONS[:3]
    wavs = [speak(text) for text in texts]
    audio = save_wav(tmp_path / "whole.wav", np.concatenate(wavs))
    starts = np.cumsum([0, *map(len, wavs)]) / 16_000
    spoken = [Utterance(f"s{i}", audio, starts[i], len(wavs[i]) / 16_000, text) for i, text in enumerate(texts)]
    manifest = tmp_path / "own.jsonl"
    write_manifest(manifest, [*spoken, Utterance("mute", audio)])
    alone = Measurement(measurement.model, TestSet(manifest), None, tmp_path / "kept")
    found = evaluate(alone, tmp_path / "results")
    assert set(found) == {"asr", "speed", "pace"} and found["asr"].main == Score(0.0, 0.0, 3)
    assert found["asr"].corpus.startswith("own ")
    printed = capsys.readouterr().out
    assert "chats.jsonl" in printed and "--grammar" in printed
    with_asr = Measurement(
        measurement.model, TestSet(manifest, corpus / "asr_grammar.jsgf"), measurement.asr, tmp_path / "kept"
    )
    assert set(evaluate(with_asr, tmp_path / "with_asr")) == {
        "originals",
        "asr",
        "answer_speech",
        "tts",
        "speed",
        "pace",
    }

    write_manifest(manifest, [Utterance("mute", audio)])
    assert evaluate(Measurement(measurement.model, TestSet(manifest), None, tmp_path), tmp_path / "empty") == {}


def test_answers_in_the_same_words_are_one_cluster(corpus: Path, asr: GrammarASR, speak: Speak, tmp_path: Path) -> None:
    """A sentence that answers many questions is misspoken each time, so its answers are not independent."""
    table = LookUpModel(speak)
    table.answers = dict.fromkeys(QUESTIONS[:4], MISSPOKEN) | {q: a for q, a, _ in CHATS[4:]}
    measurement = Measurement(as_speech_model(table), TestSet(corpus), asr, tmp_path / "kept")
    score = evaluate(measurement, tmp_path / "results", ["answer_speech"])["answer_speech"]
    texts, first = [MISSPOKEN] * 4 + ANSWERS[4:], measurement.first_recognised
    assert score.more["first_candidate"] == word_error_rate(texts, first, texts)
    assert score.more["first_candidate"].standard_error > word_error_rate(texts, first).standard_error
    assert score.more["family/sum"].standard_error is None  # two questions, one sentence
    assert load_result(tmp_path / "results" / "answer_speech.json") == score
