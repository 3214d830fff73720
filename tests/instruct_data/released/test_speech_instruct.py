"""SpeechGPT's released files: read and written byte for byte; malformed records are refused by line and reason code."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from reference import DATA
from tiny_conversations import CODEBOOK, K, conversations

from instruct_data.build.records import read_conversations, write_conversations
from instruct_data.released import speech_instruct, stage1_text
from instruct_data.released.reasons import ReleasedError, ReleasedReason
from instruct_data.released.speech_instruct import (
    PREFIX,
    ReleasedRecord,
    parse_released,
    read_released,
    spell_conversation,
    write_released,
)
from speechgpt.dialogue import Conversation, Message, Speech, part_units
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


@pytest.mark.parametrize(
    "text, kept",
    [
        (ASR, 1),
        (CHAIN, 1),
        (ASR.replace("good day", "..."), 0),
        (CHAIN.replace("who?", "?"), 0),
        (CHAIN.replace("you", "\U0001f600"), 0),
        ("[Human]: ???<eoh> [SpeechGPT]: good day<eoa> ", 0),
    ],
)
def test_a_record_with_a_text_without_a_word_is_refused(tmp_path: Path, text: str, kept: int) -> None:
    (tmp_path / "a.jsonl").write_text(line_of(text) + "\n")
    refusals = Refusals()
    assert len(list(read_released(tmp_path / "a.jsonl", K, refusals))) == kept
    assert refusals.counts == ({} if kept else {ReleasedReason.NO_WORD: 1})


# --- the released files


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


def test_the_text_of_stage_1_comes_out_byte_for_byte(tmp_path: Path) -> None:
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
    assert len(list((tmp_path / "units").glob("shard-*"))) == 1  # datasets reads every shard in the folder
    (tmp_path / "none.txt").write_text("none\n")
    with pytest.raises(ValueError, match="would hold no utterance"):
        stage1_text.main(tmp_path / "none.txt", tmp_path / "units", tmp_path / "codebook.json")
    assert not (tmp_path / "units" / "unit_set.json").exists()


def test_malformed_lines_of_stage_1_are_refused_by_number(tmp_path: Path) -> None:
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
    "an empty line": ("", ReleasedReason.EMPTY_LINE),
    "not JSON": ('{"prefix": "a", ', ReleasedReason.NOT_JSON),
    "not UTF-8": (b'{"prefix": "\xff", "plain_text": ""}', ReleasedReason.NOT_UTF8),
    "a list": ("[1, 2]", ReleasedReason.NOT_AN_OBJECT),
    "no prefix": (json.dumps({"plain_text": ASR}), ReleasedReason.MISSING_FIELD),
    "no plain_text": (json.dumps({"prefix": "a"}), ReleasedReason.MISSING_FIELD),
    "a prefix that is a number": (json.dumps({"prefix": 1, "plain_text": ASR}), ReleasedReason.WRONG_TYPE),
    "a plain_text that is a list": (line_of([ASR]), ReleasedReason.WRONG_TYPE),
    "an unknown field": (line_of(ASR, mood="good"), ReleasedReason.UNKNOWN_FIELD),
    "half a surrogate pair": (line_of(ASR.replace("good", "\ud83d")), ReleasedReason.LONE_SURROGATE),
    "an empty plain_text": (line_of(" \n"), ReleasedReason.NO_TURN),
    "no [Human]": (line_of(ASR.removeprefix("[Human]")), ReleasedReason.TURN_SYNTAX),
    "text before [Human]": (line_of("hello " + ASR), ReleasedReason.TURN_SYNTAX),
    "text after the end": (line_of(ASR + "and more"), ReleasedReason.TURN_SYNTAX),
    "no <eoh>": (line_of(ASR.replace("<eoh>", "")), ReleasedReason.TURN_SYNTAX),
    "no [SpeechGPT]": (line_of(ASR.replace("[SpeechGPT]:", "")), ReleasedReason.TURN_SYNTAX),
    "text after <eoh>": (line_of(ASR.replace("<eoh>", "<eoh> well")), ReleasedReason.TURN_SYNTAX),
    "cut short": (line_of(ASR[:-6]), ReleasedReason.CUT_SHORT),
    "an empty prompt": (line_of("[Human]: <eoh> [SpeechGPT]: a<eoa>"), ReleasedReason.EMPTY_MESSAGE),
    "an empty reply": (line_of("[Human]: a<eoh> [SpeechGPT]: <eoa>"), ReleasedReason.EMPTY_MESSAGE),
    "a unit out of range": (line_of(ASR.replace("<2>", "<12>")), ReleasedReason.UNIT_RANGE),
    "a unit below zero": (line_of(ASR.replace("<2>", "<-2>")), ReleasedReason.UNIT_SPELLING),
    "text among units": (line_of(ASR.replace("<2>", "<2> hm")), ReleasedReason.UNIT_SPELLING),
    "no units": (line_of(ASR.replace("<1><2>", "")), ReleasedReason.NO_UNITS),
    "<sosp> not closed": (line_of(ASR.replace("<eosp>", "")), ReleasedReason.UNIT_SPELLING),
    "<eosp> not opened": (line_of(ASR.replace("<sosp><1><2>", "")), ReleasedReason.UNIT_SPELLING),
    "a unit in text": (line_of(ASR.replace("good", "<7>")), ReleasedReason.STRAY_TOKEN),
    "[ua] without [ta]": (line_of(ASR.replace("good", "[ua] <sosp><1><eosp>")), ReleasedReason.STRAY_TOKEN),
    "[Human] twice": (line_of("[Human]: a " + ASR), ReleasedReason.STRAY_TOKEN),
    "text and units without [ta]": (line_of(ASR.replace("day", "<sosp><1><eosp>")), ReleasedReason.REPLY_SYNTAX),
    "[ua] without units": (line_of(CHAIN.replace("<sosp><3><eosp>", "")), ReleasedReason.EMPTY_MESSAGE),
    "[ua] with text": (line_of(CHAIN.replace("<sosp><3><eosp>", "hm")), ReleasedReason.REPLY_SYNTAX),
    "[ta] twice": (line_of(CHAIN.replace("you", "[ta] you")), ReleasedReason.STRAY_TOKEN),
    "units as a transcript": (line_of(CHAIN.replace("who?", "<sosp><1><eosp>")), ReleasedReason.UNIT_SPELLING),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_record_has_a_reason_code(kind: str) -> None:
    line, reason = MALFORMED[kind]
    with pytest.raises(ReleasedError) as error:
        parse_released(line, K, "x")
    assert error.value.reason is reason


@pytest.mark.parametrize(
    "line, value",
    [
        (line_of(ASR, mood="good"), "mood"),
        (json.dumps({"plain_text": ASR}), "prefix"),
        (line_of(ASR.replace("<2>", "<12>")), "<12>"),
        (line_of(ASR.replace("<eoh>", "<eoh> well")), "well"),
        (line_of(CHAIN.replace("you", "[ta] you")), "[ta]"),
        (line_of(ASR.replace("good", "<7>")), "<7>"),
    ],
)
def test_an_error_quotes_what_is_wrong(line: str, value: str) -> None:
    with pytest.raises(ReleasedError, match=re.escape(value)):
        parse_released(line, K, "x")


@pytest.mark.parametrize("line", ["[" * 100_000, '{"prefix": ' + "9" * 5000 + "}"])
def test_json_beyond_the_limits_of_the_parser_is_refused(line: str) -> None:
    with pytest.raises(ReleasedError) as error:
        parse_released(line, K, "x")
    assert error.value.reason in (ReleasedReason.NOT_JSON, ReleasedReason.WRONG_TYPE)


@pytest.mark.parametrize("name", ["released.jsonl", "released.jsonl.gz"])
def test_malformed_records_are_left_out_by_number_and_the_rest_is_kept(tmp_path: Path, name: str) -> None:
    assert len(MALFORMED) >= 20
    lines = [line if isinstance(line, bytes) else line.encode() for line, _ in MALFORMED.values()]
    good = line_of(ASR).encode()
    content = b"".join(good + b"\n" + line + b"\n" for line in lines)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    (tmp_path / "codebook.json").write_text(CODEBOOK.to_json())
    code = speech_instruct.main(tmp_path / name, tmp_path / "set.jsonl", tmp_path / "codebook.json")
    assert code == SOME_REFUSED
    assert read_conversations(tmp_path / "set.jsonl").counts == {"asr": len(lines)}
    listed = [json.loads(line) for line in (tmp_path / "set.jsonl.refused.jsonl").read_text().splitlines()]
    assert [one["id"] for one in listed] == [f"{tmp_path / name}:{2 * i + 2}" for i in range(len(lines))]
    assert [one["reason"] for one in listed] == [reason.value for _, reason in MALFORMED.values()]


def test_a_compressed_file_cut_short_gives_what_it_has(tmp_path: Path) -> None:
    lines = b"".join(line_of(ASR, prefix=str(i)).encode() + b"\n" for i in range(5000))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(lines)[:-50])
    refusals = Refusals()
    kept = list(read_released(tmp_path / "cut.jsonl.gz", K, refusals))
    assert kept and refusals.counts == {"damaged_file": 1}


# --- differences between the released data and the paper


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
def test_a_conversation_is_read_back_as_it_was_or_refused(conversation: Conversation) -> None:
    try:
        spelled = spell_conversation(conversation)
    except ReleasedError as error:
        assert error.reason in (ReleasedReason.NOT_EXPRESSIBLE, ReleasedReason.SPEECH_WITHOUT_UNITS)
        return
    found = parse_released(line_of(spelled), K, conversation.id).conversation
    assert [m.role for m in found.messages] == [m.role for m in conversation.messages]
    heard = [[p for p in m.parts if not isinstance(p, str)] for m in found.messages]
    spoken = [[part_units(p) for p in m.parts if not isinstance(p, str)] for m in conversation.messages]
    assert heard == [[units for units in of_message if units] for of_message in spoken]
    said = [" ".join(p for p in m.parts if isinstance(p, str)).split() for m in found.messages]
    assert said == [" ".join(p for p in m.parts if isinstance(p, str)).split() for m in conversation.messages]


SPELLED_TOKENS = ("<17>", "[Human]", "<eoh>", "<sosp><1><eosp>", "[ta]", "<eoa>", "<eos>")
HARMLESS = ('"', "\n", "😀", "שלום")


@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30),
    trick=st.sampled_from([*SPELLED_TOKENS, *HARMLESS]),
)
def test_text_that_spells_a_special_token_is_refused_in_writing(text: str, trick: str) -> None:
    assume(text.strip() and not text.strip().startswith(":"))
    asked = Message("human", (text + trick,))
    conversation = Conversation((asked, Message("assistant", ("yes",))))
    if trick in HARMLESS and not any(bracket in text for bracket in "<["):
        found = parse_released(line_of(spell_conversation(conversation)), K, "x").conversation
        assert found.messages[0].parts == ((text + trick).strip(),)
    elif trick in SPELLED_TOKENS:
        with pytest.raises(ReleasedError) as error:
            spell_conversation(conversation)
        assert error.value.reason is ReleasedReason.NOT_EXPRESSIBLE


def test_a_last_prompt_of_speech_without_units_is_refused_in_writing() -> None:
    turns = (Message("human", ("a",)), Message("assistant", ("b",)), Message("human", (Speech("c.wav"),)))
    with pytest.raises(ReleasedError) as error:
        spell_conversation(Conversation(turns))
    assert error.value.reason is ReleasedReason.SPEECH_WITHOUT_UNITS


def test_a_conversation_that_cannot_be_written_is_counted(tmp_path: Path) -> None:
    refusals = Refusals()
    said = [Conversation((Message("human", (t,)), Message("assistant", ("b",))), "chat", t) for t in ("a", "<7>", "c")]
    counts = write_released(tmp_path / "out.jsonl.gz", (ReleasedRecord("p", c) for c in said), refusals)
    assert counts == {"chat": 2} and refusals.counts == {"not_expressible": 1}
    assert [r.conversation.messages for r in read_released(tmp_path / "out.jsonl.gz", K, refusals)] == [
        said[0].messages,
        said[2].messages,
    ]
    write_conversations(tmp_path / "set.jsonl", said, None, 0)
    speech_instruct.main(tmp_path / "set.jsonl", tmp_path / "again.jsonl", prefix="p")
    assert "set.jsonl" not in (tmp_path / "again.jsonl.refused.jsonl").read_text()
    listed = json.loads((tmp_path / "again.jsonl.refused.jsonl").read_text())
    assert (listed["id"], listed["reason"]) == ("<7>", "not_expressible")


def test_speech_is_written_by_its_units_and_refused_without_them(tmp_path: Path) -> None:
    refusals = Refusals()
    prompts = [Speech("wav/q1.wav", 0.5, 1.5, (1, 2)), Speech("wav/q2.wav")]
    records = [
        ReleasedRecord("p", Conversation((Message("human", (p,)), Message("assistant", ("b",))), "asr", p.audio))
        for p in prompts
    ]
    assert write_released(tmp_path / "out.jsonl", records, refusals) == {"asr": 1}
    assert refusals.counts == {"speech_without_units": 1}
    (written,) = read_released(tmp_path / "out.jsonl", K, refusals)
    assert written.conversation.messages[0].parts == ((1, 2),)
