"""Recordings with instructions: rows that are refused, BLEU by hand, labels, and who can follow instructions."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from chat_server import chat_server

from eval.evaluation import evaluate
from eval.instructed import instructed
from eval.measurement import Measurement
from eval.metrics import Score
from eval.model import as_speech_model
from eval.models.cascade import Cascade, TrueTranscripts
from eval.results import load_details, load_results
from eval.tasks.instructed import labels, translation
from eval.tasks.instructed.labels import named_label
from eval.tasks.instructed.translation import corpus_scores
from eval.test_set import NotMeasured, TestSet
from instruct_data.text.completion import EndpointModel
from units.audio import save_wav
from units.runtime.files.json_files import FileError

ROWS = [
    {"id": "t1", "instruction": "Into German.", "translation": "a b c d f", "lang": "de", "text": "one"},
    {"id": "t2", "instruction": "Into German.", "translation": "g h i j", "lang": "de", "text": "two"},
    {"id": "t3", "instruction": "Into French.", "translation": "k l m n", "lang": "fr", "text": "three"},
    {"id": "e1", "instruction": "Happy or sad?", "label": "sad", "labels": ["happy", "sad"], "text": "four"},
    {"id": "e2", "instruction": "Happy or sad?", "label": "happy", "labels": ["happy", "sad"], "text": "five"},
    {"id": "e3", "instruction": "Happy or sad?", "label": "sad", "labels": ["happy", "sad"], "text": "six"},
]
REPLIES = {
    "t1": "a b c d e", "t2": "g h i j", "t3": "k l m n", "e1": "Sad.", "e2": "The speaker is happy.", "e3": "happy, sad"
}  # fmt: skip


def write(folder: Path, rows: list[dict]) -> TestSet:
    """A folder with one wav for each row, whose value tells which."""
    kept = []
    for number, row in enumerate(rows, 1):
        save_wav(folder / f"{number}.wav", np.full(1600, 0.1 * number, np.float32))
        kept.append({"audio": f"{number}.wav", **row})
    (folder / "instructed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    return TestSet(folder)


def measured(folder: Path, model: object) -> Measurement:
    return Measurement(as_speech_model(model), write(folder, ROWS), None, folder / "out" / "answers")


class Follower:
    name = "follower"

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def respond_batch(self, sounds, instructions, sampling=None):
        self.asked.append((instructions[0], len(sounds)))
        assert len(set(instructions)) == 1
        rows = [ROWS[round(float(sound[800]) * 10) - 1] for sound in sounds]
        assert [row["instruction"] for row in rows] == list(instructions)
        return [REPLIES[row["id"]] for row in rows]


def test_bleu_by_hand() -> None:
    bleu, _ = corpus_scores(["a b c d f"], ["a b c d e"], "de")
    assert bleu == Score(pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25), None, 1)
    perfect, chrf = corpus_scores(["Guten Tag, Herr Maier.", "a b c d"], ["Guten Tag, Herr Maier.", "a b c d"], "de")
    assert perfect.value == pytest.approx(100) and chrf.value == pytest.approx(100) and perfect.standard_error == 0
    chinese, _ = corpus_scores(["你好世界和平"], ["你好世界和平"], "zh")
    assert chinese.value == pytest.approx(100)  # six characters; one word for the tokenizer of other languages


def test_translations_are_scored_by_language(tmp_path: Path) -> None:
    model = Follower()
    outcome = translation.run(measured(tmp_path, model))
    # de: 4-grams of both lines: 8/9, 6/7, 4/5, 2/3 and as many words as the references; fr: all
    german = 100 * (8 / 9 * 6 / 7 * 4 / 5 * 2 / 3) ** 0.25
    assert outcome.more["bleu/de"].value == pytest.approx(german) and outcome.more["bleu/fr"].value == pytest.approx(
        100
    )
    assert outcome.score.value == pytest.approx((german + 100) / 2) and outcome.score.n == 3
    assert outcome.more["empty"] == Score(0.0, None, 3) and outcome.listener.startswith("sacrebleu ")
    assert model.asked == [("Into German.", 2), ("Into French.", 1)]  # one instruction to a batch
    assert [row["response"] for row in outcome.details] == ["a b c d e", "g h i j", "k l m n"]


def test_the_results_of_both_are_written_and_not_measured_again(tmp_path: Path, capsys) -> None:
    model, out = Follower(), tmp_path / "out"
    first = evaluate(measured(tmp_path, model), out, ["translation", "labels"])
    asked = len(model.asked)
    saved = load_results(out)
    assert {name: result.main for name, result in saved.items()} == {n: result.main for n, result in first.items()}
    assert saved["translation"].metric == "bleu" and saved["translation"].more["bleu/fr"].value == pytest.approx(100)
    assert [row["id"] for row in load_details(out / "translation.details.jsonl")] == ["t1", "t2", "t3"]
    again = evaluate(measured(tmp_path, model), out, ["translation", "labels"])
    assert again == first and len(model.asked) == asked
    assert capsys.readouterr().out.count("(was done)") == 2


def test_labels_are_matched_exactly_and_by_name(tmp_path: Path) -> None:
    outcome = labels.run(measured(tmp_path, Follower()))
    assert outcome.score.value == pytest.approx(1 / 3) and outcome.more["named"].value == pytest.approx(2 / 3)
    assert outcome.more["unusable"].value == pytest.approx(1 / 3)
    assert outcome.more["label/sad"].value == 0.5 and outcome.more["label/happy"].value == 0
    assert named_label("I am very sad", ["sad", "very sad", "happy"]) == "very sad"
    assert named_label("unhappy", ["happy"]) is None and named_label("", ["happy"]) is None


def test_a_refused_recording_is_a_wrong_response(tmp_path: Path) -> None:
    measurement = measured(tmp_path, Follower())
    (tmp_path / "4.wav").write_text("no audio")
    outcome = labels.run(measurement)
    assert outcome.score == Score(0.0, 0.0, 3) and list(measurement.refused) == ["e1"]


def test_models_that_follow_none_and_sets_that_have_none_are_not_measured(tmp_path: Path) -> None:
    deaf = measured(tmp_path, SimpleNamespace(name="deaf", answer=lambda wav: None))
    with pytest.raises(NotMeasured, match="respond_batch"):
        labels.run(deaf)
    write(tmp_path, ROWS[:3])
    with pytest.raises(NotMeasured, match="has a label"):
        labels.run(Measurement(as_speech_model(Follower()), TestSet(tmp_path), None, tmp_path))


@pytest.mark.parametrize(
    "change, named",
    [
        ({"label": None}, "a translation, a label, or both"),
        ({"label": "angry"}, "'angry' is not one of"),
        ({"labels": "sad"}, "labels is sad"),
        ({"start": "1"}, "start is 1"),
        ({"translation": 4}, "translation is 4"),
        ({"id": "t1"}, "'t1' is used twice"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, change: dict, named: str) -> None:
    test_set = write(tmp_path, [ROWS[0], {**ROWS[3], **change}])
    with pytest.raises(FileError, match=f"instructed.jsonl:2: .*{named}"):
        instructed(test_set)


def test_a_cascade_and_its_topline_follow_instructions(tmp_path: Path) -> None:
    test_set = write(tmp_path, ROWS)
    with chat_server(lambda messages: messages[-1]["content"].replace("\n", "/")) as server:
        cascade = Cascade(TrueTranscripts(test_set), EndpointModel(server.url, "tiny"))
        wavs = [row.item.wav() for row in instructed(test_set)[:2]]
        assert cascade.respond_batch(wavs, ["Say it.", "Into German."]) == ["Say it.//one", "Into German.//two"]
        outcome = labels.run(Measurement(cascade, test_set, None, tmp_path / "out" / "answers"))
    assert outcome.details[0]["response"] == "Happy or sad?//four"
