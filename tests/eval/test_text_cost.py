"""What speech training cost the LLM: perplexity, multiple choice and refusals, by hand-computed examples."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from eval.measurement import EverythingRefused, Measurement
from eval.model import as_speech_model
from eval.models.cascade import open_cascade
from eval.tasks import text_cost
from eval.test_set import NotMeasured, TestSet
from speechgpt.answers import Likelihood, ScoresText
from speechgpt.inference import SpeechGPT
from units.runtime.files.json_files import FileError

KEPT = Path(text_cost.__file__).parents[1] / "kept"


class TextModel:
    """A text's log-probability is -1 for every letter e, and -2 for every other letter; "long" is too long."""

    name = "letters"

    def text_likelihoods(self, texts, contexts):
        if any("long" in text for text in texts):
            raise ValueError("too long")
        return [Likelihood(-sum(1.0 if c == "e" else 2.0 for c in text if c.isalpha()), len(text)) for text in texts]

    def chat(self, text):
        if text == "filtered":
            raise ValueError("the server's filter")
        return {"a": "I\u2019m sorry, no.", "b": "Sure, here it is.", "c": " ... "}[text]


def measurement(folder: Path, **files: str) -> Measurement:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return Measurement(as_speech_model(TextModel()), TestSet(folder), None, folder / "out" / "answers")


def test_perplexity_is_of_words(tmp_path: Path) -> None:
    found = measurement(tmp_path, texts__txt="ee e\n\nab cd\n")
    outcome = text_cost.perplexity(found)  # 3 nats and 8 nats over 2 words each
    assert outcome.more["nats_a_word"].value == pytest.approx(11 / 4)
    assert outcome.score.value == pytest.approx(math.exp(11 / 4)) and outcome.score.n == 2
    # the jackknife of two clusters: half the distance of 3/2 and 8/2
    assert outcome.more["nats_a_word"].standard_error == pytest.approx((4 - 1.5) / 2)
    assert outcome.score.standard_error == pytest.approx(math.exp(11 / 4) * 1.25)


def test_a_text_that_is_too_long_is_listed(tmp_path: Path) -> None:
    found = measurement(tmp_path, texts__txt="ee e\nlong\n")
    assert text_cost.perplexity(found).score.n == 1 and list(found.refused) == ["texts.txt:2"]
    with pytest.raises(NotMeasured, match="every text"):
        text_cost.perplexity(measurement(tmp_path / "b", texts__txt="long\n"))


def test_choices_by_bytes_and_by_sums(tmp_path: Path) -> None:
    # per byte: eee -1, a -2; as a whole: a -2, eee -3. The first line is right by bytes, the second one by the sum.
    rows = [{"question": "q", "choices": ["a", "eee"], "answer": answer} for answer in (1, 0)]
    outcome = text_cost.choices(measurement(tmp_path, choices__jsonl="".join(json.dumps(row) + "\n" for row in rows)))
    assert outcome.score.value == outcome.more["sum"].value == 0.5
    assert [(row["norm"], row["sum"]) for row in outcome.details] == [(1, 0), (1, 0)]
    for wrong in ({"answer": 2}, {"answer": -1}, {"choices": ["a", ""]}, {"choices": ["a", 3]}):
        with pytest.raises(FileError, match="choices.jsonl:1"):
            text_cost.choices(measurement(tmp_path, choices__jsonl=json.dumps({**rows[0], **wrong}) + "\n"))


def test_plain_questions_are_matched_in_whole_words(tmp_path: Path) -> None:
    rows = [
        {"question": "b", "answers": ["there", "HERE"]},  # "Sure, here it is."
        {"question": "b", "answers": ["i"]},  # not a whole word of "it is"
        {"question": "c", "answers": ["anything"]},  # "..." has no word
    ]
    outcome = text_cost.plain_questions(
        measurement(tmp_path, plain__jsonl="".join(json.dumps(row) + "\n" for row in rows))
    )
    assert [row["right"] for row in outcome.details] == [True, False, False]
    assert outcome.score.value == pytest.approx(1 / 3) == outcome.more["empty"].value
    for wrong in ([], [3], ["..."]):
        with pytest.raises(FileError, match="plain.jsonl:1"):
            row = json.dumps({"question": "b", "answers": wrong})
            text_cost.plain_questions(measurement(tmp_path, plain__jsonl=row + "\n"))
    with pytest.raises(NotMeasured, match="no question"):
        text_cost.plain_questions(measurement(tmp_path / "empty", plain__jsonl=""))


def test_the_files_that_come_with_the_package_can_be_read(tmp_path: Path) -> None:
    found = Measurement(as_speech_model(PlainModel()), TestSet(KEPT), None, tmp_path / "answers")
    assert text_cost.perplexity(found).score.n == 24
    assert 0 < text_cost.choices(found).score.value < 1
    assert text_cost.plain_questions(found).score.value == pytest.approx(1 / 32)  # "Paris" to everything


class PlainModel(TextModel):
    """As TextModel; its answer is always the same."""

    def text_likelihoods(self, texts, contexts):
        return [Likelihood(-float(len(text) % 7), len(text)) for text in texts]

    def chat(self, text):
        return "It is Paris."


def test_an_empty_reply_is_no_refusal(tmp_path: Path) -> None:
    outcome = text_cost.refusals(measurement(tmp_path, harmful__txt="a\nb\nc\n"))
    assert outcome.score.value == pytest.approx(1 / 3) == outcome.more["empty"].value
    assert [row["refused"] for row in outcome.details] == [True, False, False]


def test_a_request_that_the_server_filters_is_listed(tmp_path: Path) -> None:
    found = measurement(tmp_path, harmful__txt="a\nfiltered\n")
    outcome = text_cost.refusals(found)
    assert outcome.score.value == 0.5 == outcome.more["empty"].value and list(found.refused) == ["harmful.txt:2"]
    with pytest.raises(EverythingRefused, match="the server's filter"):
        text_cost.refusals(measurement(tmp_path / "b", harmful__txt="filtered\n"))


def test_models_without_texts_are_not_measured(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a b\n")
    model = as_speech_model(SimpleNamespace(name="n", answer=lambda wav: wav))
    with pytest.raises(NotMeasured, match="text_likelihoods"):
        text_cost.perplexity(Measurement(model, TestSet(tmp_path), None, tmp_path))
    with pytest.raises(NotMeasured, match="choices.jsonl"):
        text_cost.choices(Measurement(model, TestSet(tmp_path), None, tmp_path))


def test_the_llm_alone_and_inside_the_model_give_one_figure(model_folder: Path, tmp_path: Path) -> None:
    gpt = SpeechGPT.from_pretrained(model_folder)
    llm = open_cascade(f"cascade:transcripts,{model_folder}", "cpu", TestSet(tmp_path))
    assert isinstance(gpt, ScoresText) and isinstance(llm, ScoresText)
    texts, contexts = ["two plus two", "five"], ["", "what is "]
    for a, b in zip(gpt.text_likelihoods(texts, contexts), llm.text_likelihoods(texts, contexts)):
        assert a.tokens == b.tokens and a.log_probability == pytest.approx(b.log_probability, abs=1e-4)
