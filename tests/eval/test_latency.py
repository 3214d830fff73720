"""latency: the parts of a stream by a clock of ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from eval.measurement import Measurement
from eval.tasks import latency
from eval.test_set import TestSet
from speechgpt.answers import Piece
from units.audio import SAMPLE_RATE, save_wav
from units.corpus.manifest import Utterance, write_manifest


def sound(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * SAMPLE_RATE), np.float32)


def test_the_parts_of_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    pieces = [  # when each piece comes
        (1.0, Piece(transcript="hello")), (2.0, Piece(text="good")), (3.0, Piece(wav=sound(0.5))),
        (4.0, Piece(wav=sound(1.0))), (4.5, Piece(wav=sound(0.25))), (4.6, Piece(wav=sound(0.0))),
    ]  # fmt: skip

    def stream(*_: object) -> Iterator[Piece]:
        began = clock.now
        for at, piece in pieces:
            clock.now = began + at
            yield piece

    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    model = SimpleNamespace(
        name="made", capabilities=frozenset({"answer", "stream"}), sample_rate=SAMPLE_RATE, stream=stream
    )
    path = save_wav(tmp_path / "q.wav", np.full(1600, 0.1, np.float32))
    write_manifest(tmp_path / "test.jsonl", [Utterance(f"q{i}", path, text="hello") for i in range(2)])
    outcome = latency.run(Measurement(model, TestSet(tmp_path / "test.jsonl"), None, tmp_path))
    assert (outcome.score.value, outcome.score.n) == (pytest.approx(3.0), 2)
    found = {name: score.value for name, score in outcome.more.items()}
    assert found == {
        "first_transcript": pytest.approx(1.0), "first_text": pytest.approx(2.0), "whole": pytest.approx(4.6),
        "first_piece": pytest.approx(0.5), "starved": pytest.approx(0.5),  # played from 3.0 to 3.5, the next at 4.0
    }  # fmt: skip
