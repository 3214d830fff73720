"""The judge: grades that are read, judges that are slow, refuse or talk nonsense, the cache, and the task."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from chat_server import chat_server

from eval.judge import NO_GRADE, PROMPT, TRIES, Judge, JudgeError, open_judge, read_grades
from eval.measurement import Measurement
from eval.metrics import Score
from eval.model import as_speech_model
from eval.tasks.qa import judged
from eval.test_set import NotMeasured, TestSet
from instruct_data.text.completion import EndpointModel, EndpointUnavailable, TruncatedText
from instruct_data.text.reasons import TextReason
from units.audio import save_wav
from units.corpus.manifest import Utterance, write_manifest

GOOD = '{"content": 4, "style": 5}'


@pytest.mark.parametrize(
    "said, grades",
    [
        (GOOD, {"content": 4, "style": 5}),
        (f"Sure! ```json\n{GOOD}\n```", {"content": 4, "style": 5}),
        ('{"content": 1, "style": 1} or rather {"style": 2, "content": 3, "why": "x"}', {"content": 3, "style": 2}),
        ('{"content": 6, "style": 5}', {}),
        ('{"content": 0, "style": 5}', {}),
        ('{"content": 4.5, "style": 5}', {}),
        ('{"content": true, "style": 5}', {}),
        ('{"content": "4", "style": 5}', {}),
        ('{"content": 4}', {}),
        ("I cannot grade this.", {}),
        ("5", {}),
        ("", {}),
        (TruncatedText('{"content": 4, "sty'), {}),
    ],
)
def test_only_two_whole_numbers_from_1_to_5_are_grades(said: str, grades: dict) -> None:
    assert read_grades(said) == grades


def make(url: str, folder: Path, **settings) -> Judge:
    return Judge(EndpointModel(url, "judge", **settings), PROMPT.read_text(), folder / "cache")


def test_question_and_reply_reach_the_judge_as_they_are(tmp_path: Path) -> None:
    with chat_server(lambda messages: GOOD) as server:
        make(server.url, tmp_path).grades([("why {reply}?", 'so {question} "{content}"')])
        [body] = server.requests
    text = body["messages"][0]["content"]
    assert "Question: why {reply}?\n" in text and 'Reply: so {question} "{content}"\n' in text


def test_nonsense_is_asked_again_and_never_scored(tmp_path: Path) -> None:
    said = {"odd": ["hm", "well", GOOD], "bad": ["no"] * 9, "fine": [GOOD]}

    def reply(messages: list[dict]) -> str:
        text = messages[-1]["content"]
        return said[next(word for word in said if f"Reply: {word}\n" in text)].pop(0)

    with chat_server(reply) as server:
        judge = make(server.url, tmp_path, at_once=1)
        found = judge.grades([("q", "odd"), ("q", "bad"), ("q", "fine")])
        assert [(v.grades.get("content"), v.unjudged, v.tries) for v in found] == [
            (4, "", 3), (None, NO_GRADE, TRIES), (4, "", 1)
        ]  # fmt: skip
        before = len(server.requests)
        assert before == 3 + TRIES + 1 and judge.grades([("q", "odd"), ("q", "fine")])[0].grades["content"] == 4
        assert len(server.requests) == before  # all of it is in the cache


def test_a_refused_request_is_counted_and_asked_again_later(tmp_path: Path) -> None:
    with chat_server(lambda messages: 400) as server:
        [verdict] = make(server.url, tmp_path, tries=1).grades([("q", "a")])
        assert verdict.grades == {} and verdict.unjudged == TextReason.SERVER_ERROR.value and verdict.tries == TRIES
        server.reply = lambda messages: GOOD
        assert make(server.url, tmp_path).grades([("q", "a")])[0].grades  # failures are not cached


def test_a_slow_judge_is_counted(tmp_path: Path) -> None:
    def slow(messages: list[dict]) -> str:
        time.sleep(1.5)
        return GOOD

    with chat_server(slow) as server:
        [verdict] = make(server.url, tmp_path, tries=1, timeout=0.2).grades([("q", "a")])
        assert verdict.grades == {} and verdict.unjudged == TextReason.UNREACHABLE.value
        time.sleep(1.5)


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    answers = iter([GOOD, GOOD, 401])
    with chat_server(lambda messages: next(answers)) as server:
        exchanges = [("q", f"reply {number}") for number in range(3)]
        with pytest.raises(EndpointUnavailable, match="401"):
            make(server.url, tmp_path, at_once=1, tries=1).grades(exchanges)
        server.reply = lambda messages: GOOD
        before = len(server.requests)
        assert all(verdict.grades for verdict in make(server.url, tmp_path).grades(exchanges))
        assert len(server.requests) == before + 1


def test_wrong_judges_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match="names no model"):
        open_judge("http://localhost:8000/v1", tmp_path / "cache")
    (tmp_path / "prompt.txt").write_text("Grade {question}.")
    with pytest.raises(JudgeError, match=r"needs \{reply\} once"):
        open_judge("http://localhost:8000/v1#m", tmp_path / "cache", prompt=tmp_path / "prompt.txt")
    assert open_judge("http://localhost:8000/v1#m", tmp_path / "cache").name.startswith("m at 0.0, prompt ")


TEXTS = ("good", "", "odd", "good")
HEARD = ("good", "", "", "odd")


class Asr:
    name = "made"

    def transcribe_all(self, wavs):
        return ["" if wav is None else HEARD[round(float(wav[0]) * 100) - 1] for wav in wavs]


def measured(folder: Path, url: str, asr: Asr | None = None) -> Measurement:
    """Four questions, answered by TEXTS and by wavs that Asr understands as HEARD."""
    wavs = [save_wav(folder / f"{i}.wav", np.full(1600, 0.1 + 0.1 * i, np.float32)) for i in range(4)]
    rows = [Utterance(f"q{i}", path, text=f"question {i}") for i, path in enumerate(wavs)]
    write_manifest(folder / "test.jsonl", rows)

    def answer(wav: np.ndarray) -> SimpleNamespace:
        number = round(float(wav[800]) * 10) - 1
        return SimpleNamespace(text=TEXTS[number], wav=np.full(1600, 0.01 * (number + 1), np.float32))

    model = as_speech_model(SimpleNamespace(name="made", answer=answer))
    judge = make(url, folder) if url else None
    return Measurement(model, TestSet(folder / "test.jsonl"), asr, folder / "out" / "answers", judge=judge)


def test_the_task_counts_what_is_empty_and_what_is_unjudged(tmp_path: Path) -> None:
    with chat_server(lambda messages: "?" if "Reply: odd\n" in messages[-1]["content"] else GOOD) as server:
        outcome = judged.run(measured(tmp_path, server.url, Asr()))
    assert outcome.score.value == pytest.approx((4 + 1 + 4) / 3) and outcome.score.n == 3  # odd has no grade
    more = outcome.more
    assert more["style"].value == pytest.approx((5 + 1 + 5) / 3)
    assert more["empty"] == more["unjudged"] == more["unjudged/no_grade"] == Score(0.25, None, 4)
    assert more["speech/content"].value == pytest.approx((4 + 1 + 1) / 3) and more["speech/empty"].value == 0.5
    assert more["asked_again"].value == 0.25
    rows = [(row.get("content"), row["unjudged"]) for row in outcome.details]
    assert rows == [(4, ""), (1, "empty"), (None, NO_GRADE), (4, "")]
    assert outcome.details[3]["heard"] == "odd" and outcome.listener.startswith("judge judge at 0.0")


def test_a_judge_that_grades_nothing_gives_no_figure(tmp_path: Path) -> None:
    with chat_server(lambda messages: "no") as server:
        measurement = measured(tmp_path, server.url)
        measurement.__dict__["answers"] = [answer for answer in measurement.answers if answer.text]
        measurement.test_set.__dict__["test"] = [measurement.test_set.test[i] for i in (0, 2, 3)]
        with pytest.raises(NotMeasured, match="judged none of 3 replies"):
            judged.run(measurement)
    with pytest.raises(NotMeasured, match="--judge"):
        judged.run(measured(tmp_path, ""))
