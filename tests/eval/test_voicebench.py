"""VoiceBench: its overall figure on published rows, choices that are read, its files, and what is unusable."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from eval.measurement import Measurement
from eval.model import as_speech_model
from eval.tasks import latency, voicebench
from eval.tasks.voicebench import SETS, chosen_letter, overall
from eval.test_set import NotMeasured, TestSet
from speechgpt.answers import NotSupported
from units.audio import save_wav
from units.corpus.manifest import Utterance, write_manifest
from units.runtime.files.json_files import FileError


def test_the_overall_figure_is_that_of_the_published_row() -> None:
    row = dict(zip(SETS, (3.70, 3.46, 2.92, 39.69, 25.93, 27.47, 49.20, 14.87, 11.35)))
    assert overall(row) == pytest.approx(41.12, abs=0.01)  # LLaMA-Omni, from VoiceBench's README
    with pytest.raises(KeyError):
        overall(dict.fromkeys(SETS[:-1], 1.0))


@pytest.mark.parametrize(
    "reply, letter",
    [
        ("B", "B"),
        ("B. Because it is", "B"),
        ("(c) is wrong", None),
        ("The answer is (C), I think.", "C"),
        ("the correct option: d", "D"),
        ("It must be A.", "A"),
        ("A dog barks at night", None),
        ("(D) because", "D"),
        ("I think dogs", None),
        ("", None),
    ],
)
def test_choices_are_read(reply: str, letter: str | None) -> None:
    assert chosen_letter(reply) == letter


REPLIES = {1: "The answer is B.", 2: "well", 3: "I'm sorry, no.", 4: "", 5: "Sure"}


def folder_of_sets(folder: Path) -> Path:
    """Two questions of mmsu and three of advbench; the loudness of a wav is its number."""
    for number in REPLIES:
        save_wav(folder / "voicebench" / "wav" / f"{number}.wav", np.full(1600, number / 10, np.float32))
    for name, numbers in (("mmsu", (1, 2)), ("advbench", (3, 4, 5))):
        rows = [{"prompt": f"q{n}", "reference": "B", "audio": f"wav/{n}.wav", "topic": "x"} for n in numbers]
        (folder / "voicebench" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def model():
    def answer(wav: np.ndarray) -> SimpleNamespace:
        return SimpleNamespace(text=REPLIES[round(float(wav[800]) * 10)], wav=np.full(900, 0.1, np.float32))

    return as_speech_model(SimpleNamespace(name="made", answer=answer))


def test_sets_are_answered_scored_and_written_for_its_program(tmp_path: Path) -> None:
    test_set = TestSet(folder_of_sets(tmp_path / "corpus"))
    measurement = Measurement(model(), test_set, None, tmp_path / "out" / "answers")
    outcome = voicebench.run(measurement)
    found = {name: score.value for name, score in outcome.more.items()}
    assert found == pytest.approx({
        "mmsu": 0.5, "advbench": 1 / 3, "unusable/mmsu": 0.5, "unusable/advbench": 1 / 3, "unusable": 2 / 5,
    })  # fmt: skip
    assert outcome.score.value is None and outcome.score.n == 2  # seven sets are missing
    rows = [json.loads(line) for line in (tmp_path / "out" / "voicebench" / "mmsu.jsonl").read_text().splitlines()]
    assert rows[0] == {"prompt": "q1", "reference": "B", "topic": "x", "response": "The answer is B."}
    scores = dict.fromkeys(SETS[:3], 3.0) | {name: 50.0 for name in SETS[3:] if name not in ("mmsu", "advbench")}
    (tmp_path / "corpus" / "voicebench" / "scores.json").write_text(json.dumps(scores))
    assert voicebench.run(measurement).score.value == pytest.approx((180 + 4 * 50 + 50 + 100 / 3) / 9)
    for wrong in ('{"alpaca": 3}', '{"alpacaeval": 70}', '{"mmsu": NaN}', '{"mmsu": true}'):
        (tmp_path / "corpus" / "voicebench" / "scores.json").write_text(wrong)
        with pytest.raises(FileError, match="scores.json: (alpaca|alpacaeval|mmsu) is "):
            voicebench.run(measurement)
    with pytest.raises(NotMeasured, match="no voicebench/SET.jsonl"):
        voicebench.run(Measurement(model(), TestSet(tmp_path / "corpus" / "voicebench"), None, tmp_path))


def test_latency_of_a_model_that_answers_as_a_whole(tmp_path: Path) -> None:
    paths = [save_wav(tmp_path / f"{n}.wav", np.full(1600, n / 10, np.float32)) for n in REPLIES]
    write_manifest(tmp_path / "test.jsonl", [Utterance(p.stem, p, text=f"q{p.stem}") for p in paths])
    measurement = Measurement(model(), TestSet(tmp_path / "test.jsonl"), None, tmp_path / "out" / "answers")
    outcome = latency.run(measurement)
    assert outcome.score.n == 5 and outcome.more["first_text"].n == 4  # one reply has no text
    for row in outcome.details:
        assert 0 < row["first_sound"] <= row["whole"] and (row["first_text"] is None) == (row["id"] == "4")
    deaf = as_speech_model(SimpleNamespace(name="n", chat=lambda text: text))
    with pytest.raises(NotSupported):
        latency.run(Measurement(deaf, TestSet(tmp_path / "test.jsonl"), None, tmp_path))
