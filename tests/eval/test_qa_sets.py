"""Question answering sets: each published layout, the match, and files that are something else."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from spoken_test_set import espeak

from eval.measurement import Measurement
from eval.model import as_speech_model
from eval.qa_sets import llama_questions, main, trivia_qa, web_questions
from eval.tasks.qa import qa_match
from eval.tasks.qa.qa_match import has_answer, normalised
from eval.test_set import NotMeasured, TestSet
from units.audio import save_wav
from units.runtime.files.json_files import FileError


@pytest.mark.parametrize(
    "reply, answers, part, words",
    [
        ("It is Paris, of course.", ["paris"], True, True),
        ("The Beatles!", ["A Beatles"], True, True),
        ("There are 12.", ["twelve"], True, True),
        ("There are twelve.", ["12"], True, True),
        ("There are 12.", ["2"], True, False),  # the usual match takes a part of a word
        ("In London", ["Paris", "London"], True, True),
        ("I don't know", ["Paris"], False, False),
        ("", ["Paris"], False, False),
        (None, ["Paris"], False, False),
        ("anything", ["", "the"], False, False),  # an answer without words is in no reply
    ],
)
def test_the_usual_match_and_whole_words(reply: str | None, answers: list[str], part: bool, words: bool) -> None:
    assert (has_answer(reply, answers), has_answer(reply, answers, True)) == (part, words)


def test_texts_are_normalised() -> None:
    assert normalised("The  U.S. won't; a cat") == normalised("us will not cat") or "will not cat" in normalised(
        "won't a cat"
    )


def llama_folder(folder: Path, header: str = "Questions\tAnswer\tWav Filename") -> Path:
    folder.mkdir()
    rows = ["What is the capital of France?\tParis\tq1.wav", "How many legs has a spider?\tEight\tq2.wav"]
    (folder / "llama_questions_300.tsv").write_text("\n".join([header, *rows, ""]))
    for number, name in enumerate(("q1", "q2"), 1):
        save_wav(folder / "audio" / f"{name}.wav", np.full(1600, 0.1 * number, np.float32))
    return folder


def test_llama_questions_become_a_test_set_that_is_measured(tmp_path: Path) -> None:
    main("llama", llama_folder(tmp_path / "llama"), tmp_path / "out")
    test_set = TestSet(tmp_path / "out")
    assert [item.id for item in test_set.test] == ["q1", "q2"] and test_set.accepted == {
        "q1": ["Paris"],
        "q2": ["Eight"],
    }

    def answer(wav: np.ndarray) -> SimpleNamespace:
        first = abs(float(wav[800]) - 0.1) < 0.05
        return SimpleNamespace(text="It's Paris." if first else "They have 8 legs", wav=np.full(900, 0.1, np.float32))

    asr = SimpleNamespace(name="made", transcribe_all=lambda wavs: ["paris", ""])
    model = as_speech_model(SimpleNamespace(name="made", answer=answer))
    outcome = qa_match.run(Measurement(model, test_set, asr, tmp_path / "results" / "answers"))
    assert outcome.score.value == 1.0 and outcome.score.n == 2
    found = {name: score.value for name, score in outcome.more.items()}
    assert found == {
        "whole_words": 1.0, "empty": 0.0, "speech": 0.5, "speech/whole_words": 0.5, "speech/empty": 0.5
    }  # fmt: skip
    assert [row["right"] for row in outcome.details] == [True, True]
    with pytest.raises(NotMeasured, match="qa.jsonl"):
        qa_match.run(Measurement(model, TestSet(tmp_path / "out" / "test.jsonl"), asr, tmp_path))


def test_llama_faults_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no llama_questions_300.tsv"):
        list(llama_questions(tmp_path))
    with pytest.raises(FileError, match="lacks the columns Answer"):
        list(llama_questions(llama_folder(tmp_path / "a", "Questions\tGold\tWav Filename")))
    (llama_folder(tmp_path / "b") / "audio" / "q2.wav").unlink()
    with pytest.raises(FileNotFoundError, match=r"tsv:3 names q2.wav"):
        list(llama_questions(tmp_path / "b"))


def test_web_and_trivia_questions(tmp_path: Path) -> None:
    web = [{"qId": "w1", "qText": "who is ann?", "answers": ["a painter", "Ann"]}]
    (tmp_path / "web.json").write_text(json.dumps(web))
    [item] = web_questions(tmp_path / "web.json")
    assert (item.id, item.question, item.answers, item.audio) == ("w1", "who is ann?", ("a painter", "Ann"), None)
    answer = {"Value": "Rome", "Aliases": ["Roma", "Rome"], "NormalizedAliases": ["rome"]}
    data = {"Data": [{"QuestionId": "t1", "Question": "Where?", "Answer": answer}]}
    (tmp_path / "trivia.json").write_text(json.dumps(data))
    assert [item.answers for item in trivia_qa(tmp_path / "trivia.json")] == [("Rome", "Roma")]
    with pytest.raises(FileError, match=r"trivia.json is not a list"):
        list(web_questions(tmp_path / "trivia.json"))
    with pytest.raises(FileError, match="web.json"):
        list(trivia_qa(tmp_path / "web.json"))
    (tmp_path / "bad.json").write_text('[{"qId": "w1", "qText": "who"}]')
    with pytest.raises(FileError, match=r"bad.json, question 1.*answers"):
        list(web_questions(tmp_path / "bad.json"))
    with pytest.raises(ValueError, match="--voice"):
        main("web", tmp_path / "web.json", tmp_path / "out")


def test_texts_are_asked_by_a_voice_that_is_stated(tmp_path: Path) -> None:
    espeak()
    rows = [{"qId": f"w{i}", "qText": f"what is {i}?", "answers": [str(i)] if i else []} for i in range(3)]
    (tmp_path / "web.json").write_text(json.dumps(rows))
    main("web", tmp_path / "web.json", tmp_path / "out", voice="espeak:en-us")
    assert [item.question for item in TestSet(tmp_path / "out").test] == ["what is one?", "what is two?"]
    assert json.loads((tmp_path / "out" / "qa_set.json").read_text())["voice"] == "espeak:en-us"


def test_rows_that_are_short_or_long_are_refused(tmp_path) -> None:
    table = tmp_path / "llama_questions_300.csv"
    table.write_text("Questions,Answer,Wav Filename\nwho, me?,Ann,q.wav\n")
    with pytest.raises(FileError, match="llama_questions_300.csv:2: 4 values for 3 columns"):
        list(llama_questions(tmp_path))
    table.write_text("Questions,Answer,Wav Filename\nwho\n")
    with pytest.raises(FileNotFoundError, match="llama_questions_300.csv:2"):
        list(llama_questions(tmp_path))


@pytest.mark.parametrize("aliases", ["Anna", [["Anna"]], {"a": 1}])
def test_aliases_that_are_no_list_of_texts_are_refused(tmp_path, aliases) -> None:
    row = {"QuestionId": "t1", "Question": "who?", "Answer": {"Value": "Ann", "Aliases": aliases}}
    (tmp_path / "a.json").write_text(json.dumps({"Data": [row]}))
    with pytest.raises(FileError, match="answers are"):
        list(trivia_qa(tmp_path / "a.json"))
