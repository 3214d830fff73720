"""The forced aligner: times of words, refusals by reason, resume, and a table that interleaving reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from units.audio import SAMPLE_RATE, load_wav, save_wav
from units.corpus import align, aligning
from units.corpus.alignments import Alignments
from units.runtime.command import SOME_REFUSED

pytest.importorskip("pocketsphinx")
DIGITS = Path(__file__).parents[2] / "data/digits"
SPOKEN = ("0_jackson_0.wav", "0_jackson_1.wav", "0_jackson_2.wav")  # each says zero


def joined_digits(path: Path, gap: float = 0.3) -> tuple[Path, list[tuple[float, float]]]:
    """Three spoken digits with silence between them, and where each begins and ends."""
    wavs = [load_wav(DIGITS / name) for name in SPOKEN]
    silence = np.zeros(round(gap * SAMPLE_RATE), np.float32)
    at, times = 0.0, []
    for wav in wavs:
        times.append((at, at + len(wav) / SAMPLE_RATE))
        at += len(wav) / SAMPLE_RATE + gap
    return save_wav(path, np.concatenate([part for wav in wavs for part in (wav, silence)])), times


def manifest(folder: Path, *rows: dict) -> Path:
    path = folder / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_words_are_found_where_they_are_said(tmp_path: Path) -> None:
    audio, times = joined_digits(tmp_path / "a.wav")
    rows = manifest(tmp_path, {"id": "a", "audio": str(audio), "text": "Zero, zero - zero."})
    assert align.main([rows], tmp_path / "w.tsv", workers=1) is None
    segments = Alignments.open(tmp_path / "w.tsv").segments("a")
    assert [segment.label for segment in segments] == ["Zero,", "zero", "zero."]
    for segment, (start, end) in zip(segments, times):
        assert segment.start == pytest.approx(start, abs=0.15) and segment.end == pytest.approx(end, abs=0.25)
    assert not (tmp_path / "w.tsv.refused.jsonl").exists() and not list(tmp_path.glob(".w.tsv.parts"))


def test_what_cannot_be_aligned_is_listed(tmp_path: Path) -> None:
    audio, _ = joined_digits(tmp_path / "a.wav")
    save_wav(tmp_path / "silent.wav", np.zeros(8000, np.float32))
    rows = manifest(
        tmp_path,
        {"id": "good", "audio": "a.wav", "text": "zero zero zero"},
        {"id": "untexted", "audio": "a.wav"},
        {"id": "unknown", "audio": "a.wav", "text": "zero xyzzyq"},
        {"id": "missing", "audio": "b.wav", "text": "zero"},
        {"id": "silent", "audio": "silent.wav", "text": "zero"},
        {"id": "too\tmany", "audio": "a.wav", "text": "zero"},
        {"id": "misfit", "audio": "a.wav", "text": " ".join(["zero zero zero"] * 40)},
    )
    assert align.main([rows], tmp_path / "w.tsv", workers=1) == SOME_REFUSED
    listed = [json.loads(line) for line in (tmp_path / "w.tsv.refused.jsonl").read_text().splitlines()]
    assert {row["id"]: row["reason"] for row in listed} == {
        "untexted": "no_text",
        "unknown": "unknown_word",
        "missing": "not_found",
        "silent": "silent",
        "too\tmany": "invalid_field",
        "misfit": "not_aligned",
    }
    assert Alignments.open(tmp_path / "w.tsv").segments("good")


def test_a_killed_run_goes_on_and_gives_the_same_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aligning, "PART", 2)
    audio, _ = joined_digits(tmp_path / "a.wav")
    rows = manifest(tmp_path, *({"id": f"u{i}", "audio": str(audio), "text": "zero zero zero"} for i in range(5)))
    (tmp_path / "other.jsonl").write_text(
        json.dumps({"id": "other", "audio": str(audio), "text": "zero zero zero"}) + "\n"
    )
    align.main.cli([f"[{rows}, {tmp_path}/other.jsonl]", str(tmp_path / "two.tsv"), "--workers=1"])
    assert len(Alignments.open(tmp_path / "two.tsv").segments("other")) == 3
    align.main([rows], tmp_path / "whole.tsv", workers=1)
    asked: list[int] = []

    def killed(wav: np.ndarray, text: str) -> list:
        asked.append(1)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return plain(wav, text)

    plain = aligning.aligned
    monkeypatch.setattr(aligning, "aligned", killed)
    with pytest.raises(KeyboardInterrupt):
        align.main([rows], tmp_path / "w.tsv", workers=1)
    assert not (tmp_path / "w.tsv").exists()
    align.main([rows], tmp_path / "w.tsv", workers=1)
    assert len(asked) == 4 + 3  # the first part, of two, is not aligned again
    assert (tmp_path / "w.tsv").read_bytes() == (tmp_path / "whole.tsv").read_bytes()


def test_a_table_that_was_begun_from_other_utterances_is_refused(tmp_path: Path, monkeypatch) -> None:
    audio, _ = joined_digits(tmp_path / "a.wav")
    first = manifest(tmp_path, {"id": "a", "audio": str(audio), "text": "zero zero zero"})
    monkeypatch.setattr(aligning, "_align_part", lambda part: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        align.main([first], tmp_path / "w.tsv", workers=1)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="begun with other utterances"):
        align.main(
            [manifest(tmp_path, {"id": "b", "audio": str(audio), "text": "zero"})], tmp_path / "w.tsv", workers=1
        )
    shutil.rmtree(tmp_path / ".w.tsv.parts")
    with pytest.raises(ValueError, match="two of the manifests"):
        align.main([first, first], tmp_path / "w.tsv", workers=1)
