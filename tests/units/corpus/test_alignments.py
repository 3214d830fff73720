"""Alignments: TextGrids long, short and wide, tables, and what is neither."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from units.corpus.alignments import Alignments, Segment

in_tmp_path = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 0.6
tiers? <exists>
size = 3
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 0.6
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 0.6
            text = "say ""12"" now"
    item [2]:
        class = "TextTier"
        name = "events"
        xmin = 0
        xmax = 0.6
        points: size = 1
        points [1]:
            number = 0.3
            mark = "click"
    item [3]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 0.6
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.25
            text = ""
        intervals [2]:
            xmin = 0.25
            xmax = 4e-1
            text = "EY1"
        intervals [3]:
            xmin = 0.4
            xmax = 0.6
            text = "ʃ"
"""
SHORT = """File type = "ooTextFile"
Object class = "TextGrid"

0
0.6
<exists>
1
"IntervalTier"
"phones"
0
0.6
3
0
0.25
""
0.25
0.4
"EY1"
0.4
0.6
"ʃ"
"""
PHONES = [Segment(0.0, 0.25, "sil"), Segment(0.25, 0.4, "EY"), Segment(0.4, 0.6, "ʃ")]


def test_textgrids_of_every_kind(tmp_path: Path) -> None:
    for name, text, encoding in (
        ("84/long", LONG, "utf-8"),
        ("85/short", SHORT, "utf-8-sig"),
        ("wide", LONG, "utf-16"),
    ):
        path = tmp_path / f"{name}.TextGrid"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode(encoding))
    (tmp_path / "84" / "wide.TextGrid").write_text(SHORT, encoding="utf-8")
    phones = Alignments.open(tmp_path)
    for utterance in ("84/long", "long", "85/short", "short", "wide", "84/wide"):
        assert phones.segments(utterance) == PHONES
    assert phones.segments("absent") is None
    assert Alignments.open(tmp_path, "words").segments("long") == [Segment(0.0, 0.6, 'say "12" now')]
    with pytest.raises(ValueError, match="no tier 'words'; its tiers are .'phones'.*--tier"):
        Alignments.open(tmp_path, "words").segments("short")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no .TextGrid"):
        Alignments.open(tmp_path / "empty")


@pytest.mark.parametrize(
    "line", ["a\t0\t1", "a 0 1 x", "a\t0\tone\tx", "a\t1\t0\tx", "a\t-1\t0\tx", "a\t0\tnan\tx", "a\t0\tinf\tx"]
)
def test_a_bad_alignment_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.tsv"
    path.write_text(f"b\t0\t1\tx\n{line}\n")
    with pytest.raises(ValueError, match=r"labels\.tsv(:2|, a): "):
        Alignments.open(path)


def test_overlapping_labels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.tsv"
    path.write_text("b\t0\t1\tx\nb\t0.9\t2\ty\n")
    with pytest.raises(ValueError, match="labels.tsv, b: .* overlap"):
        Alignments.open(path)


@in_tmp_path
@given(
    rows=st.lists(
        st.tuples(st.sampled_from(["a", "b c", "é"]), st.integers(0, 50), st.integers(0, 9), st.text("xyz", min_size=1))
    )
)
def test_a_table_is_read_as_it_was_written(rows: list[tuple[str, int, int, str]], tmp_path: Path) -> None:
    """Segments that follow each other in time, their lines shuffled by the order of the ids."""
    expected: dict[str, list[Segment]] = {}
    for utterance, gap, length, label in rows:
        before = expected.setdefault(utterance, [])
        start = (before[-1].end if before else 0.0) + gap / 8
        before.append(Segment(start, start + length / 8, label))
    lines = [
        f"{name}\t{s.start!r}\t{s.end!r}\t{s.label}\n" for name, found in expected.items() for s in reversed(found)
    ]
    path = tmp_path / "labels.tsv"
    path.write_text("id\tstart\tend\tlabel\n" + "".join(lines), encoding="utf-8")
    alignments = Alignments.open(path)
    for name in ("a", "b c", "é"):
        found = alignments.segments(name) or []
        assert Counter(found) == Counter(expected.get(name, []))
        assert all(a.end <= b.start for a, b in zip(found, found[1:]))


@in_tmp_path
@given(junk=st.binary(max_size=40), cut=st.integers(0, 40))
def test_hostile_tables(junk: bytes, cut: int, tmp_path: Path) -> None:
    seed = b"id\tstart\tend\tlabel\na\t0\t0.5\tAH0\na\t0.5\t1\tT\n"
    path = tmp_path / "labels.tsv"
    path.write_bytes(seed[:cut] + junk + seed[cut:])
    try:
        segments = Alignments.open(path).segments("a") or []
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert all(0 <= s.start <= s.end < float("inf") for s in segments)


@in_tmp_path
@given(data=st.data())
def test_hostile_textgrids(data: st.DataObject, tmp_path: Path) -> None:
    seed = data.draw(st.sampled_from([LONG, SHORT])).encode()
    cut = data.draw(st.integers(0, len(seed)))
    junk = data.draw(
        st.one_of(st.binary(max_size=20), st.sampled_from([b" 1e999 ", b" 99999999999 ", b' " ', b"<exists>"]))
    )
    path = tmp_path / "a.TextGrid"
    path.write_bytes(seed[:cut] + junk + data.draw(st.sampled_from([b"", seed[cut:]])))
    try:
        segments = Alignments.open(tmp_path).segments("a")
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert segments is not None and all(s.start <= s.end for s in segments)
