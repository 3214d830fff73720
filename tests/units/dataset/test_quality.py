"""Unit quality: every formula against brute force, and against scikit-learn where it has the same figure."""

from __future__ import annotations

import json
import math
import random
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import homogeneity_score, mutual_info_score
from tiny_parts import tones
from tiny_set import record_of, tiny_codebook, write_set

from units.audio import num_frames, save_wav
from units.codebook import Units
from units.corpus.alignments import Alignments, Segment
from units.dataset import quality
from units.dataset.measures.figures import LabelAgreement, Quality, find_record, measure
from units.dataset.measures.information import edit_distance, entropy, mutual_information, purities
from units.dataset.measures.picture import draw_units, unit_spans
from units.dataset.measures.speakers import sample_pairs
from units.dataset.unit_set import read_unit_set

K = 6
labelled_frames = st.lists(st.tuples(st.integers(0, 4), st.integers(0, K - 1)), min_size=1, max_size=60)


def joint_of(pairs: list[tuple[int, int]]) -> np.ndarray:
    joint = np.zeros((5, K), np.int64)
    for label, unit in pairs:
        joint[label, unit] += 1
    return joint


@given(labelled_frames)
def test_information_as_counted_one_by_one(pairs: list[tuple[int, int]]) -> None:
    joint, total = joint_of(pairs), len(pairs)
    labels, units, both = Counter(y for y, _ in pairs), Counter(z for _, z in pairs), Counter(pairs)
    assert entropy(joint.sum(1)) == pytest.approx(-sum(n / total * math.log2(n / total) for n in labels.values()))
    information = sum(n / total * math.log2(n * total / (labels[y] * units[z])) for (y, z), n in both.items())
    assert mutual_information(joint) == pytest.approx(information, abs=1e-9)
    assert mutual_information(joint) == pytest.approx(mutual_info_score(*zip(*pairs)) / math.log(2), abs=1e-9)
    # Equations 8 and 9: the expected probability of the likeliest label given the unit, and the other way round.
    label_purity = sum(units[z] / total * max(both[y, z] / units[z] for y in labels) for z in units)
    cluster_purity = sum(labels[y] / total * max(both[y, z] / labels[y] for z in units) for y in labels)
    assert purities(joint) == pytest.approx((label_purity, cluster_purity))
    assert purities(joint.T) == pytest.approx((cluster_purity, label_purity))


def test_information_at_its_ends() -> None:
    assert entropy(np.zeros(4)) == 0.0
    assert entropy(np.full(8, 3)) == pytest.approx(3.0)
    assert mutual_information(np.eye(4)) == pytest.approx(2.0)
    assert mutual_information(np.ones((4, 4))) == 0.0
    assert purities(np.eye(4)) == (1.0, 1.0)


def slow_edit_distance(one: tuple[int, ...], two: tuple[int, ...]) -> int:
    if not one or not two:
        return len(one) + len(two)
    change = slow_edit_distance(one[:-1], two[:-1]) + (one[-1] != two[-1])
    return min(change, slow_edit_distance(one[:-1], two) + 1, slow_edit_distance(one, two[:-1]) + 1)


short = st.lists(st.integers(0, 2), max_size=5).map(tuple)


@given(short, short)
def test_edit_distance_as_it_is_defined(one: tuple[int, ...], two: tuple[int, ...]) -> None:
    assert edit_distance(one, two) == slow_edit_distance(one, two)


@given(*[st.lists(st.integers(0, 9), max_size=40)] * 3)
def test_edit_distance_is_a_metric(a: list[int], b: list[int], c: list[int]) -> None:
    assert edit_distance(a, a) == 0
    assert edit_distance(a, b) == edit_distance(b, a) >= abs(len(a) - len(b))
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)


def brute_agreement(frames: dict[str, list[int]], segments: dict[str, list[Segment]]) -> LabelAgreement:
    """Frame by frame, by the definition: the label at the frame's middle."""
    pairs, unlabelled = [], 0
    for name in segments.keys() & frames.keys():
        for n, unit in enumerate(frames[name]):
            middle = (n + 0.5) / 50
            said = [s.label for s in segments[name] if s.start <= middle < s.end]
            pairs += [(label, unit) for label in said]
            unlabelled += not said
    labels, units, both = Counter(y for y, _ in pairs), Counter(z for _, z in pairs), Counter(pairs)
    return LabelAgreement(
        len(labels),
        sum(max(both[y, z] for y in labels) for z in units) / len(pairs),
        sum(max(both[y, z] for z in units) for y in labels) / len(pairs),
        homogeneity_score(*zip(*pairs)),
        len(pairs),
        unlabelled,
        len(frames.keys() - segments.keys()),
    )


@pytest.mark.parametrize("seed", range(4))
def test_labels_and_usage_as_counted_frame_by_frame(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    frames = {f"u{i}": [draw.randrange(K - 1) for _ in range(draw.randint(20, 60))] for i in range(7)}
    lines, segments = ["id\tstart\tend\tlabel"], {}
    for name in [*list(frames)[:5], "elsewhere"]:
        cuts = sorted(round(draw.uniform(0, 1.5), 3) + 0.0004 for _ in range(8))
        segments[name] = [Segment(a, b, draw.choice("xyz")) for a, b in zip(cuts, cuts[1:]) if draw.random() < 0.8]
        lines += [f"{name}\t{s.start}\t{s.end}\t{s.label}" for s in reversed(segments[name])]
    segments = {name: found for name, found in segments.items() if found}
    (tmp_path / "labels.tsv").write_text("\n".join(lines))
    unit_set = read_unit_set(write_set(tmp_path / "set", [record_of(n, f, K) for n, f in frames.items()], K))
    found = measure(unit_set, Alignments.open(tmp_path / "labels.tsv"))
    expected = brute_agreement(frames, segments)
    for name in ("labels", "frames", "unlabelled", "unaligned"):
        assert getattr(found.labels, name) == getattr(expected, name)
    for name in ("label_purity", "cluster_purity", "pnmi"):
        assert getattr(found.labels, name) == pytest.approx(getattr(expected, name))
    flat = [unit for one in frames.values() for unit in one]
    runs = [b for one in frames.values() for a, b in zip([None, *one], one) if a != b]
    seconds = sum(400 + 320 * (len(one) - 1) for one in frames.values()) / 16_000
    usage = found.usage
    assert (usage.frames, usage.units, usage.used, usage.dead) == (
        len(flat),
        len(runs),
        len(set(flat)),
        K - len(set(flat)),
    )
    assert usage.units_per_second == pytest.approx(len(runs) / seconds)
    assert usage.frame_entropy == pytest.approx(entropy(np.bincount(flat)))
    assert usage.bitrate == pytest.approx(len(runs) / seconds * entropy(np.bincount(runs)))
    assert (found.speakers, found.sentences) == (None, ())


def test_alignments_of_other_utterances_are_refused(tmp_path: Path) -> None:
    unit_set = read_unit_set(write_set(tmp_path / "set", [record_of("a", [1], K), record_of("b", [2], K)], K))
    (tmp_path / "labels.tsv").write_text("A\t0\t1\tx\n")
    with pytest.raises(ValueError, match="label no frame of .*; its ids are such as 'a'"):
        measure(unit_set, Alignments.open(tmp_path / "labels.tsv"))


def test_units_that_name_the_speaker_and_units_that_do_not(tmp_path: Path) -> None:
    def measured(frames_of: dict[str, list[list[int]]], where: str) -> Quality:
        records = [
            record_of(f"{speaker}{i}", frames, K, f"Sentence, {i}!", speaker)
            for speaker, many in frames_of.items()
            for i, frames in enumerate(many)
        ]
        return measure(read_unit_set(write_set(tmp_path / where, records, K)))

    same = [[i % K, (i + 1) % K] for i in range(12)]
    deaf = measured({"x": same, "y": same}, "deaf")
    assert deaf.speakers and deaf.speakers.information == pytest.approx(0, abs=1e-9)
    assert deaf.speakers.speaker_entropy == pytest.approx(1)
    by_kind = {one.of: one for one in deaf.sentences}
    assert by_kind["one sentence, two voices"].mean == 0 and by_kind["one sentence, two voices"].pairs == 12
    assert by_kind["two sentences, two voices"].mean > 0
    blabbing = measured({"x": [[0, 1]] * 12, "y": [[2, 3]] * 12}, "blabbing")
    assert blabbing.speakers and blabbing.speakers.information == pytest.approx(1)
    assert blabbing.speakers.by_chance < 0.5
    assert {one.of: one.mean for one in blabbing.sentences}["one sentence, two voices"] == 1


def test_pairs_are_what_they_are_called() -> None:
    draw = random.Random(0)
    rows = [(draw.choice(["a", "b", "c", None]), draw.choice(["x", "y", None])) for _ in range(60)]
    pairs = sample_pairs(rows, 40, random.Random(1))
    assert pairs == sample_pairs(rows, 40, random.Random(1))
    for kind, found in pairs.items():
        assert found and len(found) == len(set(found)) <= 40
        for i, j in found:
            assert None not in (*rows[i], *rows[j]) and i < j
            assert (rows[i][0] == rows[j][0]) == kind.startswith("one sentence")
            assert (rows[i][1] == rows[j][1]) == kind.endswith("one voice")
    assert not any(sample_pairs([("a", "x"), ("b", "x")], 5, draw).values())
    assert not any(sample_pairs([], 5, draw).values())


# --- the picture


def test_spans_of_units_tile_the_time() -> None:
    spans = unit_spans(Units((3, 1, 3), (2, 1, 4), tiny_codebook(K)))
    assert spans == [Segment(0.0, 0.04, "3"), Segment(0.04, 0.06, "1"), Segment(0.06, 0.14, "3")]


def test_a_picture_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib.image

    wav = np.concatenate([np.zeros(8000, np.float32), tones(6.0)])
    units = Units.from_frames([n // 3 % K for n in range(num_frames(len(wav)))], tiny_codebook(K))
    short, long = tmp_path / "short.png", tmp_path / "long.png"
    draw_units(wav, units, short, begin=6.0)
    draw_units(wav, units, long, [Segment(0.0, 0.5, "sil"), Segment(0.5, 6.0, "HH")])
    narrow, wide = (matplotlib.image.imread(path) for path in (short, long))
    assert wide.shape[1] > 3 * narrow.shape[1] and wide.shape[0] > narrow.shape[0]
    assert np.std(wide[..., :3]) > 0.1
    with pytest.raises(ValueError, match="begin at 7.0 s, but the wav is 6.50 s long"):
        draw_units(wav, units, tmp_path / "none.png", begin=7.0)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match="pip install matplotlib"):
        draw_units(wav, units, tmp_path / "none.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.png", "short.png"]


# --- the command


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    wav = tones(0.5)
    frames = [n % K for n in range(num_frames(len(wav)))]
    save_wav(tmp_path / "wav" / "sub" / "a.wav", wav)
    records = [record_of("sub/a", frames, K, "hello", "x"), record_of("b", [0, 1], K, "hello", "y")]
    records[0] = type(records[0])("sub/a", records[0].units, len(wav), "hello", "x")
    unit_set = write_set(tmp_path / "set", records, K)
    (tmp_path / "labels.tsv").write_text("sub/a\t0\t0.2\tAH0\nsub/a\t0.2\t0.4\tAH1\nsub/a\t0.4\t0.5\t\n")

    def run(*words: str | Path) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["units-quality", *map(str, words)])
        quality.main.cli()
        return capsys.readouterr()

    picture = tmp_path / "a.png"
    out, _ = run(
        unit_set,
        "--alignments",
        tmp_path / "labels.tsv",
        "--out",
        tmp_path / "q.json",
        "--wav",
        tmp_path / "wav/sub/a.wav",
        "--picture",
        picture,
    )
    assert out.startswith("sub/a -> ") and "PNMI" in out and "bits a second" in out and "two voices (1 pairs)" in out
    assert picture.read_bytes()[:4] == b"\x89PNG"
    written = json.loads((tmp_path / "q.json").read_text())
    assert written["labels"]["labels"] == 2 and written["usage"]["size"] == K  # AH without stress, and silence
    assert written["sentences"][0]["pairs"] == 1
    wrong = {
        "needs both": [unit_set, "--picture", picture],
        "no utterance for": [unit_set, "--picture", picture, "--wav", tmp_path / "other.wav"],
        "but 'b' of": [unit_set, "--picture", picture, "--wav", tmp_path / "wav/sub/a.wav", "--utterance", "b"],
        "not a complete unit set": [tmp_path],
    }
    for message, words in wrong.items():
        with pytest.raises(SystemExit) as stopped:
            run(*words)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    assert find_record(read_unit_set(unit_set), Path("anything.wav"), "b").id == "b"
