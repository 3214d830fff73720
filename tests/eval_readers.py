"""Readers of published evaluation sets, of scores and of figures, for tests/whole/test_damaged_files.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from damaged_files import Reader
from made_suites import write_suite

from eval.likelihood.zerospeech import lexical, read_submission
from eval.qa_sets import llama_questions, trivia_qa, web_questions
from eval.report.comparison import read_published
from eval.tasks.voicebench import _overall, _rows
from eval.test_set import TestSet
from units.audio import save_wav

TABLE = "llama_questions_300.tsv"
TRIVIA = {"Data": [{"QuestionId": "t1", "Question": "who?", "Answer": {"Value": "Ann", "Aliases": ["Anna", "An"]}}]}
PUBLISHED = [{"figure": "asr", "model": "SpeechGPT", "value": 0.5, "source": "paper"}]


def written(name: str, content: str) -> Callable[[Path], None]:
    """Writes a file of this content, and a recording."""

    def write(folder: Path) -> None:
        save_wav(folder / "q.wav", np.full(1600, 0.1, np.float32))
        (folder / name).write_text(content, encoding="utf-8")

    return write


def accepted(folder: Path) -> object:
    save_wav(folder / "q.wav", np.full(1600, 0.1, np.float32))
    (folder / "test.jsonl").write_text('{"id": "q", "audio": "q.wav", "text": "who"}\n')
    return TestSet(folder).accepted


def write_scores(folder: Path) -> None:
    write_suite(folder)
    (folder / "dev.txt").write_text("w0_1 -1.5\nw0_0 -2\nw1_1 -0.5\nw1_0 -3e1\n")


EVAL_READERS = {
    "table of a suite": Reader("gold.csv", write_suite, lexical),
    "submitted scores": Reader("dev.txt", write_scores, lambda f: read_submission(f / "dev.txt", lexical(f))),
    "table of LlamaQuestions": Reader(
        TABLE,
        written(TABLE, "Questions\tAnswer\tWav Filename\nwho is it?\tAnn\tq.wav\nwhat is it?\ta \u2028dog\tq.wav\n"),
        lambda f: list(llama_questions(f)),
    ),
    "WebQuestions": Reader(
        "web.json",
        written("web.json", json.dumps([{"qId": "w1", "qText": "who?", "answers": ["Ann", "Anna"]}])),
        lambda f: list(web_questions(f / "web.json")),
    ),
    "TriviaQA": Reader("a.json", written("a.json", json.dumps(TRIVIA)), lambda f: list(trivia_qa(f / "a.json"))),
    "accepted answers": Reader("qa.jsonl", written("qa.jsonl", '{"id": "q", "answers": ["a"]}\n'), accepted),
    "rows of VoiceBench": Reader(
        "alpacaeval.jsonl",
        written("alpacaeval.jsonl", '{"prompt": "a", "audio": "q.wav", "reference": "A"}\n'),
        lambda f: _rows(f / "alpacaeval.jsonl"),
    ),
    "scores of VoiceBench": Reader(
        "scores.json",
        written("scores.json", '{"alpacaeval": 3.5, "mmsu": 40}'),
        lambda f: _overall({}, f / "scores.json"),
    ),
    "published figures": Reader(
        "figures.json", written("figures.json", json.dumps(PUBLISHED)), lambda f: read_published(f / "figures.json")
    ),
}
