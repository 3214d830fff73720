"""Pairs of replies on disk, and in TRL's format: round trips, malformed lines refused by number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_conversations import CODEBOOK, conversations, units

from instruct_data.build.preference_sets import Pair, pair_line, parse_pair, read_preferences, write_preferences
from instruct_data.build.records import RecordError, write_conversations
from instruct_data.released import trl_pairs
from instruct_data.released.reasons import ReleasedError
from instruct_data.released.trl_pairs import parse_trl, trl_record
from speechgpt.dialogue import Conversation, Message
from speechgpt.prompts import tts_prompt
from units.runtime.command import SOME_REFUSED

WORDS = st.sampled_from(["red cat", "what is it", "two, three", "ü"])
SOME = units.filter(bool)
ASKED = (Message("human", ((1, 2),)),)


def reply(*parts) -> Message:
    return Message("assistant", parts)


def chain(chosen=(1,), rejected=(2,), name="q1") -> Pair:
    return Pair(ASKED, reply("what", "that", chosen), reply("what", "that", rejected), "chain", name, (0.0, 0.5))


@st.composite
def pairs(draw) -> Pair:
    """Two replies to the turns of any conversation, or two utterances of units."""
    if draw(st.booleans()):
        one, two = draw(st.tuples(units, units).filter(lambda two: two[0] != two[1]))
        return Pair((), reply(one), reply(two), "continuation", draw(st.text(max_size=5)))
    conversation = draw(conversations)
    *turns, chosen = conversation.messages
    *_, rejected = draw(conversations.filter(lambda other: other.messages[-1] != chosen)).messages
    scores = draw(st.none() | st.tuples(st.floats(0, 9), st.floats(0, 9)))
    return Pair(tuple(turns), chosen, rejected, conversation.task, conversation.id, scores)


@given(pairs())
def test_a_line_is_read_as_it_was_written(pair) -> None:
    assert parse_pair(pair_line(pair).decode(), "x:1", CODEBOOK) == pair


def test_a_set_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = [chain(), Pair((), reply((1, 2)), reply((1, 3)), "continuation", "u")]
    counts = write_preferences(tmp_path / "p.jsonl.gz", made, CODEBOOK, seed=3)
    found = read_preferences(tmp_path / "p.jsonl.gz")
    assert (list(found), found.counts, found.seed, found.codebook) == (made, counts, 3, CODEBOOK)
    assert len(found) == 2 and counts == {"chain": 1, "continuation": 1}


def line(**changes) -> str:
    return json.dumps({**json.loads(pair_line(chain())), **changes})


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("{", "JSON|Expecting"),
        ("[]", "is not a pair"),
        (line(scores=[1]), "two numbers"),
        (line(scores=["a", "b"]), "two numbers"),
        (line(id=3), "id is '3'"),
        (line(more=1), "the fields are"),
        (line(chosen=[{"units": [99999]}]), "whole numbers from 0"),
        (line(rejected=json.loads(line())["chosen"]), "the same"),
        (line(messages=[]), "one part of units each"),
        (line(messages=[{"role": "assistant", "parts": [{"text": "a"}]}]), "must be from 'human'"),
        (line(chosen=[]), "no parts"),
    ],
)
def test_a_malformed_line_is_refused_with_its_number(written, said) -> None:
    with pytest.raises(RecordError, match=rf"^set:7: .*(?:{said})"):
        parse_pair(written, "set:7", CODEBOOK)


def test_files_that_are_no_preference_sets(tmp_path: Path) -> None:
    conversation = Conversation((*ASKED, reply("a")))
    write_conversations(tmp_path / "c.jsonl", [conversation], CODEBOOK, 0)
    with pytest.raises(RecordError, match=r"c\.jsonl:1: not the header of a preference set: format is 'conv"):
        read_preferences(tmp_path / "c.jsonl")
    path = tmp_path / "p.jsonl"
    write_preferences(path, [chain(), chain(name="q2")], CODEBOOK)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(RecordError, match="1 pairs, but its header counts 2"):
        list(read_preferences(path))


# --- TRL


@given(WORDS, WORDS, SOME, SOME, SOME)
def test_what_trl_is_given_is_read_back(heard, said, asked, one, two) -> None:
    if one == two:
        return
    prompt = Message("human", (asked,))
    for pair in (
        Pair((prompt,), reply(heard, said, one), reply(heard, said, two), "chain", "a", (0.25, 1.0)),
        Pair((tts_prompt(said),), reply(one), reply(two), "tts", "b"),
        Pair((prompt, reply(said), prompt), reply(heard), reply(said + " x"), "asr", "c"),
        Pair((), reply(one), reply(two), "continuation", "d"),
    ):
        record = trl_record(pair)
        assert {turn["role"] for turn in record["chosen"] + record["rejected"]} == {"assistant"}
        assert parse_trl(json.dumps(record), CODEBOOK, "x") == pair


def test_plain_text_is_a_single_turn() -> None:
    record = {"prompt": "say <sosp><1><eosp>", "chosen": "one", "rejected": "two"}
    expected = Pair((Message("human", ("say", (1,))),), reply("one"), reply("two"), "asr", "pair-1")
    assert parse_trl(json.dumps(record), CODEBOOK, "pair-1") == expected


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("{", "not_json"),
        ("3", "not_an_object"),
        ({"chosen": "a", "rejected": "b"}, "missing_field"),
        ({"prompt": [{"role": "system", "content": "a"}], "chosen": "a", "rejected": "b"}, "wrong_type"),
        ({"prompt": ["a"], "chosen": "a", "rejected": "b"}, "wrong_type"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "wrong_type"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "turn_syntax"),
        ({"prompt": "q", "chosen": "", "rejected": "a"}, "turn_syntax"),
        ({"prompt": "q", "chosen": [{"role": "user", "content": "a"}], "rejected": "a"}, "turn_syntax"),
        ({"prompt": "q", "chosen": "<sosp><99999><eosp>", "rejected": "a"}, "unit_range"),
        ({"prompt": "<eoh>", "chosen": "a", "rejected": "b"}, "stray_token"),
    ],
)
def test_a_malformed_line_of_trl(record, reason) -> None:
    with pytest.raises(ReleasedError) as raised:
        parse_trl(record if isinstance(record, str) else json.dumps(record), CODEBOOK, "x")
    assert raised.value.reason == reason


def test_there_and_back_by_command(tmp_path: Path, capsys) -> None:
    spelled = Pair((Message("human", ("say <eoh>",)),), reply("a"), reply("b"), "chat", "odd")
    write_preferences(tmp_path / "p.jsonl.gz", [chain(), spelled, chain(name="q2")], CODEBOOK)
    assert trl_pairs.main(tmp_path / "p.jsonl.gz", tmp_path / "trl.jsonl") == SOME_REFUSED
    assert "2 pairs" in capsys.readouterr().out
    assert "odd" in (tmp_path / "trl.jsonl.refused.jsonl").read_text()
    (tmp_path / "codebook.json").write_text(CODEBOOK.to_json())
    assert trl_pairs.main(tmp_path / "trl.jsonl", tmp_path / "back.jsonl", tmp_path / "codebook.json") is None
    assert list(read_preferences(tmp_path / "back.jsonl")) == [chain(), chain(name="q2")]


def test_trl_reads_what_is_written(tmp_path: Path) -> None:
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    write_preferences(tmp_path / "p.jsonl", [chain(), chain(name="q2")], CODEBOOK)
    trl_pairs.main(tmp_path / "p.jsonl", tmp_path / "trl.jsonl")
    rows = datasets.load_dataset("json", data_files=str(tmp_path / "trl.jsonl"), cache_dir=str(tmp_path))["train"]
    assert all(trl.is_conversational(row) for row in rows) and rows[0]["chosen"][0]["content"].startswith(
        "what; [ta] that"
    )
