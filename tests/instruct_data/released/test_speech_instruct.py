"""Upstream's files: read and written byte for byte, every kind of malformed record refused by line and reason, the rest kept."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from reference import DATA
from tiny_conversations import CODEBOOK, K, conversations

from instruct_data.build.records import read_conversations, write_conversations
from instruct_data.released import speech_instruct, stage1_text
from instruct_data.released.speech_instruct import (
    PREFIX,
    ReleasedRecord,
    parse_released,
    read_released,
    spell_conversation,
    write_released,
)
from speechgpt.dialogue import Conversation, Message, part_units
from units.codebook import Codebook
from units.dataset.unit_set import read_unit_set
from units.runtime.command import SOME_REFUSED
from units.runtime.refusals import Refusals

RELEASED, STAGE1 = DATA / "speechinstruct_released.jsonl", DATA / "stage1_released.txt"
UPSTREAM = Codebook("mhubert-L11-km1000", "mhubert", 11, 1000, 50.0, "none", "89abcdef")

ASR = "[Human]: Write this down. This is input: <sosp><1><2><eosp><eoh> [SpeechGPT]: good day<eoa> "
CHAIN = "[Human]: <sosp><1><2><eosp><eoh>. [SpeechGPT]: who?; [ta] you; [ua] <sosp><3><eosp><eoa>."


def line_of(text: object, **more: object) -> str:
    return json.dumps({"prefix": "You are.", "plain_text": text, **more})


# --- upstream's own files


def test_the_released_file_comes_out_byte_for_byte(tmp_path: Path) -> None:
    refusals = Refusals()
    records = list(read_released(RELEASED, 1000, refusals))
    assert not refusals.counts
    assert [record.conversation.task for record in records] == ["tts", "chain"]
    assert {record.prefix for record in records} == {PREFIX}
    spoken, chain = (record.conversation.messages for record in records)
    assert spoken[0].parts[0].endswith("This is input: The alchemist rode in front, with the falcon on his shoulder.")
    assert chain[1].parts[0] == "What is a bad term for poop?" and len(chain[1].parts) == 3
    write_released(tmp_path / "out.jsonl", iter(records), refusals)
    assert (tmp_path / "out.jsonl").read_bytes() == RELEASED.read_bytes()


def test_the_released_file_passes_through_a_conversation_set(tmp_path: Path) -> None:
    (tmp_path / "codebook.json").write_text(UPSTREAM.to_json())
    speech_instruct.main(RELEASED, tmp_path / "set.jsonl.gz", tmp_path / "codebook.json")
    found = read_conversations(tmp_path / "set.jsonl.gz")
    assert (found.codebook, found.counts) == (UPSTREAM, {"chain": 1, "tts": 1})
    speech_instruct.main(tmp_path / "set.jsonl.gz", tmp_path / "back.jsonl")
    assert (tmp_path / "back.jsonl").read_bytes() == RELEASED.read_bytes()
    assert not list(tmp_path.glob("*refused*"))


def test_the_first_stages_text_comes_out_byte_for_byte(tmp_path: Path) -> None:
    (tmp_path / "codebook.json").write_text(UPSTREAM.to_json())
    stage1_text.main(STAGE1, tmp_path / "units", tmp_path / "codebook.json")
    records = list(read_unit_set(tmp_path / "units"))
    assert len(records) == 3 and records[0].units.ids[:3] == (189, 247, 922)
    assert all(record.units.durations is None and record.num_samples is None for record in records)
    stage1_text.main(tmp_path / "units", tmp_path / "back.txt")
    assert (tmp_path / "back.txt").read_text().splitlines() == STAGE1.read_text().splitlines()

    (tmp_path / "long.txt").write_text("<sosp><1><2><eosp>\n" * 2001)
    stage1_text.main(tmp_path / "long.txt", tmp_path / "units", tmp_path / "codebook.json")
    assert len(list((tmp_path / "units").glob("shard-*"))) == 2
    stage1_text.main(STAGE1, tmp_path / "units", tmp_path / "codebook.json")
    assert len(list((tmp_path / "units").glob("shard-*"))) == 1  # datasets reads whatever shards lie there
    (tmp_path / "none.txt").write_text("none\n")
    with pytest.raises(ValueError, match="would hold no utterance"):
        stage1_text.main(tmp_path / "none.txt", tmp_path / "units", tmp_path / "codebook.json")
    assert not (tmp_path / "units" / "unit_set.json").exists()


def test_the_first_stages_malformed_lines_are_refused_by_number(tmp_path: Path) -> None:
    good = b"<sosp><1><2><eosp>\n"
    bad = [b"\n", b"<sosp><eosp>\n", b"<1><2>\n", b"<sosp><1><12><eosp>\n", b"<sosp><1>x<2><eosp>\n", b"\xff\n"]
    (tmp_path / "train.txt").write_bytes(good + b"".join(line + good for line in bad))
    (tmp_path / "codebook.json").write_text(CODEBOOK.to_json())
    code = stage1_text.main(tmp_path / "train.txt", tmp_path / "units", tmp_path / "codebook.json")
    assert code == SOME_REFUSED
    assert len(read_unit_set(tmp_path / "units")) == len(bad) + 1
    listed = [json.loads(line) for line in (tmp_path / "units.refused.jsonl").read_text().splitlines()]
    assert [one["id"].rsplit(":", 1)[1] for one in listed] == ["2", "4", "6", "8", "10", "12"]
    assert [one["reason"] for one in listed] == [
        "unit_spelling",
        "no_units",
        "unit_spelling",
        "unit_range",
        "unit_spelling",
        "not_utf8",
    ]


# --- malformed records

MALFORMED = {
    "an empty line": ("", "the line is empty"),
    "not JSON": ('{"prefix": "a", ', "not JSON"),
    "not UTF-8": (b'{"prefix": "\xff", "plain_text": ""}', "not UTF-8"),
    "a list": ("[1, 2]", "not an object"),
    "no prefix": (json.dumps({"plain_text": ASR}), "no prefix"),
    "no plain_text": (json.dumps({"prefix": "a"}), "no plain_text"),
    "a prefix that is a number": (json.dumps({"prefix": 1, "plain_text": ASR}), "prefix is no text"),
    "a plain_text that is a list": (line_of([ASR]), "plain_text is no text"),
    "an unknown field": (line_of(ASR, mood="good"), "unknown fields"),
    "half a surrogate pair": (line_of(ASR.replace("good", "\ud83d")), "half a character"),
    "an empty plain_text": (line_of(" \n"), "plain_text is empty"),
    "no [Human]": (line_of(ASR.removeprefix("[Human]")), "no [Human] where a turn begins"),
    "words before [Human]": (line_of("hello " + ASR), "no [Human] where a turn begins"),
    "words after the end": (line_of(ASR + "and more"), "no [Human] where a turn begins"),
    "no <eoh>": (line_of(ASR.replace("<eoh>", "")), "no <eoh> after what the human says"),
    "no [SpeechGPT]": (line_of(ASR.replace("[SpeechGPT]:", "")), "no [SpeechGPT] after <eoh>"),
    "words after <eoh>": (line_of(ASR.replace("<eoh>", "<eoh> well")), "words between <eoh> and [SpeechGPT]"),
    "cut short": (line_of(ASR[:-6]), "no <eoa> at the end"),
    "the human says nothing": (line_of("[Human]: <eoh> [SpeechGPT]: a<eoa>"), "a turn says nothing"),
    "the model says nothing": (line_of("[Human]: a<eoh> [SpeechGPT]: <eoa>"), "a turn says nothing"),
    "a unit out of range": (line_of(ASR.replace("<2>", "<12>")), "a unit is out of range"),
    "a unit below zero": (line_of(ASR.replace("<2>", "<-2>")), "units are not spelled"),
    "words among units": (line_of(ASR.replace("<2>", "<2> hm")), "units are not spelled"),
    "no units": (line_of(ASR.replace("<1><2>", "")), "no units between"),
    "<sosp> not closed": (line_of(ASR.replace("<eosp>", "")), "<sosp> without <eosp>"),
    "<eosp> not opened": (line_of(ASR.replace("<sosp><1><2>", "")), "<eosp> without <sosp>"),
    "a unit in text": (line_of(ASR.replace("good", "<7>")), "a unit outside <sosp>..<eosp>"),
    "a marker in text": (line_of(ASR.replace("good", "[ua] <sosp><1><eosp>")), "text and units in a reply"),
    "[Human] twice": (line_of("[Human]: a " + ASR), "[Human] in the midst of text"),
    "text and units without markers": (line_of(ASR.replace("day", "<sosp><1><eosp>")), "text and units in a reply"),
    "[ua] without units": (line_of(CHAIN.replace("<sosp><3><eosp>", "")), "a turn says nothing"),
    "[ua] with text": (line_of(CHAIN.replace("<sosp><3><eosp>", "hm")), "no units after [ua]"),
    "[ta] twice": (line_of(CHAIN.replace("you", "[ta] you")), "[ta] in the midst of text"),
    "a chain that hears units": (line_of(CHAIN.replace("who?", "<sosp><1><eosp>")), "<sosp> without <eosp>"),
}  # fmt: skip


def refused_reason(line: str | bytes) -> str:
    with pytest.raises(ValueError) as error:
        parse_released(line, K, "x")
    return str(error.value)


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_record_says_why(kind: str) -> None:
    line, reason = MALFORMED[kind]
    if kind in ("a marker in text", "a chain that hears units"):  # either of two faults may be named first
        assert refused_reason(line)
    else:
        assert refused_reason(line).startswith(reason)


@pytest.mark.parametrize("name", ["released.jsonl", "released.jsonl.gz"])
def test_malformed_records_are_left_out_by_number_and_the_rest_is_kept(tmp_path: Path, name: str) -> None:
    assert len(MALFORMED) >= 20
    lines = [line if isinstance(line, bytes) else line.encode() for line, _ in MALFORMED.values()]
    good = line_of(ASR).encode()
    content = b"".join(good + b"\n" + line + b"\n" for line in lines)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    (tmp_path / "codebook.json").write_text(CODEBOOK.to_json())
    speech_instruct.main(tmp_path / name, tmp_path / "set.jsonl", tmp_path / "codebook.json")
    assert read_conversations(tmp_path / "set.jsonl").counts == {"asr": len(lines)}
    listed = [json.loads(line) for line in (tmp_path / "set.jsonl.refused.jsonl").read_text().splitlines()]
    assert [one["where"] for one in listed] == [f"{tmp_path / name}:{2 * i + 2}" for i in range(len(lines))]
    assert all(one["reason"] for one in listed)


def test_a_compressed_file_cut_short_gives_what_it_has(tmp_path: Path) -> None:
    lines = b"".join(line_of(ASR, prefix=str(i)).encode() + b"\n" for i in range(5000))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(lines)[:-50])
    refusals = Refusals()
    kept = list(read_released(tmp_path / "cut.jsonl.gz", K, refusals))
    assert kept and refusals.counts == {"damaged_file": 1}


# --- what upstream's data and paper disagree on


@pytest.mark.parametrize(
    "text, parts, task",
    [
        (ASR, ("good day",), "asr"),
        (ASR.replace("<eoh>", " <eoh>."), ("good day",), "asr"),
        (ASR.replace("<eoa> ", "<eos>."), ("good day",), "asr"),
        (CHAIN, ("who?", "you", (3,)), "chain"),
        (CHAIN.replace("who", "[tq] who"), ("who?", "you", (3,)), "chain"),
        (CHAIN.replace("; [ua] <sosp><3><eosp>", ""), ("who?", "you"), "chain_speech_to_text"),
        (CHAIN.replace("who?; ", ""), ("you", (3,)), "chain_text_to_speech"),
        ("[Human]:a <eoh>. [SpeechGPT]:b<eos>.", ("b",), "chat"),
        (CHAIN + " " + ASR, ("good day",), "asr"),
    ],
)
def test_reading_is_lenient_about_spaces_dots_and_ends(text: str, parts: tuple, task: str) -> None:
    conversation = parse_released(line_of(text), K, "x").conversation
    assert (conversation.messages[-1].parts, conversation.task) == (parts, task)


# --- any conversation


@given(conversation=conversations)
def test_what_can_be_said_is_read_back_and_the_rest_is_refused(conversation: Conversation) -> None:
    try:
        spelled = spell_conversation(conversation)
    except ValueError as error:
        assert "the released form cannot say it" in str(error)
        return
    found = parse_released(line_of(spelled), K, conversation.id).conversation
    assert [m.role for m in found.messages] == [m.role for m in conversation.messages]
    heard = [[p for p in m.parts if not isinstance(p, str)] for m in found.messages]
    spoken = [[part_units(p) for p in m.parts if not isinstance(p, str)] for m in conversation.messages]
    assert heard == [[units for units in of_message if units] for of_message in spoken]
    said = [" ".join(p for p in m.parts if isinstance(p, str)).split() for m in found.messages]
    assert said == [" ".join(p for p in m.parts if isinstance(p, str)).split() for m in conversation.messages]


@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30),
    trick=st.sampled_from(["<17>", "[Human]", "<eoh>", "<sosp><1><eosp>", "[ta]", "<eoa>", "<eos>", '"', "\n", "😀", "שלום"]),
)  # fmt: skip
def test_text_that_spells_a_marker_is_refused_in_writing(text: str, trick: str) -> None:
    assume(text.strip() and not text.strip().startswith(":"))
    asked = Message("human", (text + trick,))
    conversation = Conversation((asked, Message("assistant", ("yes",))))
    harmless = trick in ('"', "\n", "😀", "שלום") and not any(mark in text for mark in "<[")
    if harmless:
        found = parse_released(line_of(spell_conversation(conversation)), K, "x").conversation
        assert found.messages[0].parts == ((text + trick).strip(),)
    elif trick not in ('"', "\n", "😀", "שלום"):
        with pytest.raises(ValueError, match="cannot say it"):
            spell_conversation(conversation)


def test_what_cannot_be_written_is_counted(tmp_path: Path) -> None:
    refusals = Refusals()
    said = [Conversation((Message("human", (t,)), Message("assistant", ("b",))), "chat", t) for t in ("a", "<7>", "c")]
    counts = write_released(tmp_path / "out.jsonl.gz", (ReleasedRecord("p", c) for c in said), refusals)
    assert counts == {"chat": 2} and refusals.counts == {"the released form cannot say it": 1}
    assert [r.conversation.messages for r in read_released(tmp_path / "out.jsonl.gz", K, refusals)] == [
        said[0].messages,
        said[2].messages,
    ]
    write_conversations(tmp_path / "set.jsonl", said, None, 0)
    speech_instruct.main(tmp_path / "set.jsonl", tmp_path / "again.jsonl", prefix="p")
    assert "set.jsonl" not in (tmp_path / "again.jsonl.refused.jsonl").read_text()
    assert '"where": "<7>"' in (tmp_path / "again.jsonl.refused.jsonl").read_text()
