"""The doors of units/ for text: manifests and spelled units, property-based and with hostile input."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from units import notation
from units.codebook import expand, reduce
from units.corpus.manifest import (
    CorpusReason,
    ManifestError,
    Utterance,
    has_word,
    is_plain_text,
    read_manifest,
    write_manifest,
)

plain = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
seconds = st.floats(0, 1e6)
in_tmp_path = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@in_tmp_path
@given(
    rows=st.lists(
        st.builds(
            dict, id=plain, start=seconds, duration=st.none() | seconds, text=st.none() | plain, lang=st.none() | plain
        ),
        max_size=5,
        unique_by=lambda row: row["id"],
    )
)
def test_a_manifest_is_read_as_it_was_written(rows: list[dict], tmp_path: Path) -> None:
    written = [Utterance(audio=tmp_path / f"{i}.wav", **row) for i, row in enumerate(rows)]
    assert read_manifest(write_manifest(tmp_path / "m.jsonl", written)) == written


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse names that are not Unicode")
@in_tmp_path
@given(name=st.binary(min_size=1, max_size=20).filter(lambda name: not set(name) & set(b"\0/") and name.strip(b".")))
def test_any_name_of_a_file_survives(name: bytes, tmp_path: Path) -> None:
    audio = tmp_path / os.fsdecode(name)
    (read,) = read_manifest(write_manifest(tmp_path / "m.jsonl", [Utterance("a", audio)]))
    assert os.fsencode(read.audio) == os.fsencode(audio)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([10**400, "\0", "\ud800"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
records = st.fixed_dictionaries(
    {"id": st.just("a") | values, "audio": st.just("a.wav") | values},
    optional=dict.fromkeys(("start", "duration", "text", "speaker", "lang"), values),
)


@in_tmp_path
@given(
    line=st.one_of(
        st.binary(max_size=60),
        records.map(json.dumps).map(str.encode),
        st.just(b"[" * 100_000),
        st.just(b'{"id": ' + b"1" * 5000 + b', "audio": "a"}'),
    )
)
def test_a_hostile_line_is_named_or_sound(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"id": "first", "audio": "f.wav"}\n' + line)
    try:
        found = read_manifest(path)
    except ManifestError as error:
        assert str(error).startswith(f"{path}:")
        assert isinstance(error.reason, CorpusReason)
        return
    assert found[0].id == "first"
    for utterance in found:  # what is accepted can be used: cut out, written, and put into a parquet file
        assert 0 <= utterance.start < float("inf") and 0 <= (utterance.duration or 0) < float("inf")
        assert all(is_plain_text(text) for text in (utterance.id, utterance.text or "", utterance.speaker or ""))
        assert utterance.audio.exists() is False


@pytest.mark.parametrize(
    "fields, reason",
    [
        ({"start": 1e999}, "start is inf"),
        ({"duration": 10**400}, "number of seconds"),
        ({"id": ["a"]}, "id is"),
        ({"audio": "a\0.wav"}, "audio is"),
        ({"text": "\ud800"}, "text is"),
        ({"id": "\udce9"}, "id is"),
    ],
)
def test_what_would_fail_later_is_refused_at_the_door(fields: dict, reason: str, tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text(json.dumps({"id": "a", "audio": "a.wav", **fields}))
    with pytest.raises(ManifestError, match=f"m.jsonl:1: .*{reason}") as error:
        read_manifest(tmp_path / "m.jsonl")
    assert error.value.reason is CorpusReason.INVALID_FIELD


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5))))
def test_reduce_is_the_inverse_of_expand_where_neighbours_differ(drawn: list[tuple[int, int]]) -> None:
    runs = [run for run, before in zip(drawn, [(-1, 0), *drawn]) if run[0] != before[0]]
    ids, durations = tuple(run[0] for run in runs), tuple(run[1] for run in runs)
    assert reduce(expand(ids, durations)) == (ids, durations)


spelling = st.lists(st.sampled_from([*"<>sope0123456789 ", "<sosp>", "<eosp>", "<7>", "<07>", "<\u0663>", "\n"])).map(
    "".join
)


words = st.lists(st.sampled_from(["<7>", "<12>", "<07>", "<\u0663>"]), max_size=3).map("".join)


@given(spelling | words.map(lambda text: f"<sosp>{text}<eosp>"))
def test_what_is_read_is_what_was_spelled(text: str) -> None:
    """There is one spelling of every sequence: leading zeros and the digits of other scripts are none."""
    try:
        ids = notation.read(text)
    except ValueError:
        assert notation.spell([int(number) for number in re.findall(r"\d+", text)]) != text.strip()
    else:
        assert notation.spell(ids) == text.strip()


WORDLESS = [
    "",
    " \n",
    "...",
    "…",
    "???",
    "—",
    "-- ",
    "😀",
    "👍🏽",
    "\u0301",
    "\u200b\u200d\ufeff",
    "\u3164\u115f",
    "ー",
    "♪",
    "«»",
    "॥",
    "_",
]


@pytest.mark.parametrize("text", WORDLESS)
def test_a_text_without_a_letter_or_digit_has_no_word(text: str) -> None:
    assert not has_word(text)


@pytest.mark.parametrize(
    "text", ["a", "...7", "é", "e\u0301", "да", "你", "す", "네", "कि", "٣", "०", "Ⅷ", "½", "😀 ok", "ش", "ስ"]
)
def test_one_letter_or_digit_of_any_script_is_a_word(text: str) -> None:
    assert has_word(text) and has_word(f"\u200b {text}!")


def test_paths_below_the_manifest_are_relative_and_others_whole(tmp_path: Path) -> None:
    written = [
        Utterance("a", tmp_path / "wav" / "a.wav", text="größe", speaker="x"),
        Utterance("b", Path("/elsewhere/b.wav"), 0.5, 1.25, lang="de"),
    ]
    path = write_manifest(tmp_path / "m.jsonl", written)
    assert read_manifest(path) == written
    assert json.loads(path.read_text(encoding="utf-8").splitlines()[0])["audio"] == "wav/a.wav"


def test_stretches_of_a_recording_share_its_path_and_their_speaker(tmp_path: Path) -> None:
    written = [Utterance(str(i), tmp_path / "long.wav", float(i), 1.0, speaker="anna k.") for i in range(3)]
    rows = read_manifest(write_manifest(tmp_path / "m.jsonl", written))
    assert rows == written
    assert all(row.audio is rows[0].audio and row.speaker is rows[0].speaker for row in rows)


@pytest.mark.parametrize(
    "line, reason",
    [
        ("{", "not JSON"),
        ("[1]", "needs at least"),
        ('{"id": "b"}', "needs at least"),
        ('{"id": "b", "audio": "b.wav", "txt": "x"}', "unknown fields"),
        ('{"id": "a", "audio": "b.wav"}', "used twice"),
        ('{"id": "b", "audio": 3}', "audio"),
        ('{"id": "b", "audio": "b.wav", "start": "soon"}', "start"),
        ('{"id": "b", "audio": "b.wav", "duration": -1}', "duration"),
    ],
)
def test_a_bad_manifest_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "m.jsonl").write_text('{"id": "a", "audio": "a.wav"}\n' + line + "\n")
    with pytest.raises(ManifestError, match=f"m.jsonl:2: .*{reason}"):
        read_manifest(tmp_path / "m.jsonl")
