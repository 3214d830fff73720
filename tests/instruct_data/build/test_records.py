"""Conversations on disk: round trips, malformed lines refused by number, the same bytes each time."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from tiny_conversations import CODEBOOK, conversations
from tiny_parts import K
from tiny_spoken_set import build
from transformers import AutoTokenizer

from instruct_data.build.cross_modal import read_instructions, shard_parts
from instruct_data.build.records import (
    RecordError,
    conversation_record,
    parse_conversation,
    read_conversations,
    write_conversations,
)
from instruct_data.build.splits import Splits
from instruct_data.text.chats import TextPair
from speechgpt.dialogue import INPUT_FOLLOWS, Conversation, Message, Speech
from stages.config import Source, StageConfig
from stages.unit_system.documents import documents
from units.codebook import CodebookMismatch, Units
from units.dataset.unit_set import COMPLETION_FILE, UnitRecord, shard_path, write_shard, write_unit_set
from units.runtime.refusals import Refusals

VOICE = "tone:low"


def made(count: int = 5) -> list[Conversation]:
    return [
        Conversation(
            (Message("human", (f"say\n{i} ü", (i % K, 1))), Message("assistant", ((i % K,),))),
            "tts" if i % 2 else "asr",
            f"c{i}",
        )
        for i in range(count)
    ]


# --- on disk


@given(conversation=conversations)
def test_a_record_is_read_as_it_was_written(conversation: Conversation) -> None:
    line = json.dumps(conversation_record(conversation), ensure_ascii=False)
    assert parse_conversation(line, "here", CODEBOOK) == conversation


# As release 0.1.0 wrote it, for the codebook of these tests.
SET_OF_0_1_0 = """\
{"format": "conversations/1", "codebook": {"name": "tiny", "encoder": "mfcc", "layer": 0, "size": 12, \
"frame_rate": 50.0, \
"centring": "none", "fingerprint": "0123abcd"}, "seed": 3, "counts": {"asr": 1, "chain": 1}}
{"id": "asr-q1", "task": "asr", "messages": [{"role": "human", "parts": [{"text": "Write. This is input:"}, \
{"units": [1, 2]}]}, \
{"role": "assistant", "parts": [{"text": "gr\u00fc\u00df dich"}]}]}
{"id": "chain-q2", "task": "chain", "messages": [{"role": "human", "parts": [{"units": [3]}]}, \
{"role": "assistant", "parts": [{"text": "who?"}, {"text": "you"}, {"units": [4, 5]}]}]}
"""


def test_a_set_of_release_0_1_0_is_read(tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_text(SET_OF_0_1_0, encoding="utf-8")
    found = read_conversations(tmp_path / "set.jsonl")
    asr, chain = found
    assert (found.codebook, found.seed, found.counts) == (CODEBOOK, 3, {"asr": 1, "chain": 1})
    assert asr.messages[0].parts == ("Write. This is input:", (1, 2)) and asr.messages[1].parts == (
        "gr\u00fc\u00df dich",
    )
    assert chain.messages[1].parts == ("who?", "you", (4, 5))
    write_conversations(tmp_path / "again.jsonl", found, found.codebook, found.seed)
    assert (tmp_path / "again.jsonl").read_text().splitlines()[1:] == SET_OF_0_1_0.splitlines()[1:]


def test_speech_is_read_with_the_place_of_its_audio(tmp_path: Path) -> None:
    question, answer = Speech("wav/q1.wav", 0.5, 1.25), Speech(str(tmp_path / "a1.flac"))
    said = [Conversation((Message("human", (question,)), Message("assistant", ("yes", answer))), "chain", "c1")]
    write_conversations(tmp_path / "data" / "set.jsonl", said, None, 0)
    found = read_conversations(tmp_path / "data" / "set.jsonl")
    assert found.codebook is None and list(found) == said
    assert found.audio_path(question) == tmp_path / "data" / "wav" / "q1.wav"
    assert found.audio_path(answer) == tmp_path / "a1.flac"
    record = json.loads((tmp_path / "data" / "set.jsonl").read_text().splitlines()[1])
    assert record["messages"][0]["parts"] == [{"speech": "wav/q1.wav", "start": 0.5, "duration": 1.25}]
    assert record["messages"][1]["parts"] == [{"text": "yes"}, {"speech": str(tmp_path / "a1.flac")}]


def test_one_set_holds_text_units_and_speech(tmp_path: Path) -> None:
    both = Speech("q1.wav", 0.0, 2.0, (1, 2))
    said = [
        Conversation((Message("human", ("hi", (3,), both)), Message("assistant", ("ok", (4,)))), "chain", "c1"),
        Conversation(
            (Message("human", (Speech("q2.wav"),)), Message("assistant", ("who?", "me", both))), "chain", "c2"
        ),
    ]
    write_conversations(tmp_path / "set.jsonl.gz", said, CODEBOOK, 0)
    assert list(read_conversations(tmp_path / "set.jsonl.gz")) == said


def test_halves_of_chains_say_what_is_learned(tmp_path: Path) -> None:
    heard = Message("human", ((1,),))
    said = [
        Conversation((heard, Message("assistant", ("who?",), "transcript")), "chain_transcript", "c1"),
        Conversation((heard, Message("assistant", ("who?", "me"), "answer")), "chain_answer", "c2"),
        Conversation((heard, Message("assistant", ("who?", "me"))), "chain_speech_to_text", "c3"),
    ]
    write_conversations(tmp_path / "set.jsonl", said, CODEBOOK, 0)
    assert list(read_conversations(tmp_path / "set.jsonl")) == said
    records = [json.loads(line) for line in (tmp_path / "set.jsonl").read_text().splitlines()[1:]]
    assert [record["messages"][1].get("learned") for record in records] == ["transcript", "answer", None]


@pytest.mark.parametrize("name", ["set.jsonl", "set.jsonl.gz"])
def test_a_set_is_read_as_it_was_written(tmp_path: Path, name: str) -> None:
    counts = write_conversations(tmp_path / name, made(), CODEBOOK, seed=3)
    found = read_conversations(tmp_path / name)
    assert list(found) == list(found) == made()
    assert (found.codebook, found.seed, found.counts, len(found)) == (CODEBOOK, 3, counts, 5)
    assert counts == {"asr": 3, "tts": 2}
    assert [path.name for path in tmp_path.iterdir()] == [name]
    first = (tmp_path / name).read_bytes()
    write_conversations(tmp_path / "again" / name, iter(made()), CODEBOOK, seed=3)
    assert (tmp_path / "again" / name).read_bytes() == first


def test_a_set_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    def broken():
        yield made()[0]
        raise KeyError("half way")

    with pytest.raises(KeyError):
        write_conversations(tmp_path / "set.jsonl", broken(), CODEBOOK, 0)
    assert not list(tmp_path.iterdir())


def line_of(messages: object, **changed: object) -> str:
    return json.dumps({"id": "x", "task": "chat", "messages": messages, **changed})


ASKED = {"role": "human", "parts": [{"text": "hi"}]}
BAD_LINES = {
    "not JSON": ("{", "Expecting"),
    "an empty line": ("", "Expecting value"),
    "a list": ("[1, 2]", "fields"),
    "a number": ("7", "7 is not a conversation"),
    "no task": (json.dumps({"id": "x", "messages": [ASKED]}), "the fields are"),
    "an unknown field": (line_of([ASKED], mood="good"), "mood"),
    "a task that is no text": (line_of([ASKED], task=5), "task"),
    "an id that is no text": (line_of([ASKED], id=5), "id"),
    "messages that are text": (line_of("hello"), "messages is 'hello'"),
    "messages that are a number": (line_of(3), "messages"),
    "no messages": (line_of([]), "no messages"),
    "a message that is text": (line_of(["hello"]), "a message"),
    "a message without parts": (line_of([{"role": "human"}]), "a message has the fields"),
    "empty parts": (line_of([{"role": "human", "parts": []}]), "has no parts"),
    "an unknown role": (line_of([{"role": "system", "parts": [{"text": "a"}]}]), "role 'system'"),
    "the assistant first": (line_of([{"role": "assistant", "parts": [{"text": "a"}]}]), "roles alternate"),
    "two humans": (line_of([ASKED, ASKED]), "roles alternate"),
    "a part that is text": (line_of([{"role": "human", "parts": ["hi"]}]), "a part is"),
    "a part of two kinds": (line_of([{"role": "human", "parts": [{"text": "a", "units": [1]}]}]), "a part is"),
    "a text that is a number": (line_of([{"role": "human", "parts": [{"text": 3}]}]), "a part is"),
    "units spelled as text": (line_of([{"role": "human", "parts": [{"units": "<1>"}]}]), "a part is"),
    "a unit too big": (line_of([{"role": "human", "parts": [{"units": [1, K]}]}]), f"from 0 to {K - 1}"),
    "a unit below zero": (line_of([{"role": "human", "parts": [{"units": [-1]}]}]), f"from 0 to {K - 1}"),
    "a unit that is a fraction": (line_of([{"role": "human", "parts": [{"units": [1.0]}]}]), "whole numbers"),
    "a unit that is a truth": (line_of([{"role": "human", "parts": [{"units": [True]}]}]), "whole numbers"),
    "speech that is a number": (line_of([{"role": "human", "parts": [{"speech": 3}]}]), "speech is '3'"),
    "speech without a path": (line_of([{"role": "human", "parts": [{"speech": ""}]}]), "speech is ''"),
    "speech and text": (line_of([{"role": "human", "parts": [{"speech": "a.wav", "text": "b"}]}]), "a part is"),
    "a start below zero": (
        line_of([{"role": "human", "parts": [{"speech": "a.wav", "start": -0.1}]}]),
        "start is -0.1",
    ),
    "a start that is text": (
        line_of([{"role": "human", "parts": [{"speech": "a.wav", "start": "1"}]}]),
        "start is '1'",
    ),
    "an infinite start": (line_of([{"role": "human", "parts": [{"speech": "a.wav", "start": 1e999}]}]), "start is inf"),
    "no duration": (line_of([{"role": "human", "parts": [{"speech": "a.wav", "duration": 0}]}]), "duration is 0"),
    "speech whose units are too big": (
        line_of([{"role": "human", "parts": [{"speech": "a.wav", "units": [K]}]}]),
        f"from 0 to {K - 1}",
    ),
    "an unknown field of a message": (line_of([{**ASKED, "mood": "good"}]), "a message has the fields"),
    "learned that is a number": (
        line_of([ASKED, {"role": "assistant", "parts": [{"text": "a"}], "learned": 1}]),
        "learned is 1",
    ),
    "a half without a transcript": (
        line_of([ASKED, {"role": "assistant", "parts": [{"text": "a"}], "learned": "answer"}]),
        "learned is 'answer'",
    ),
    "three texts of the assistant": (
        line_of([ASKED, {"role": "assistant", "parts": [{"text": "a"}] * 3}]),
        "an assistant message is",
    ),
}


@pytest.mark.parametrize("kind", BAD_LINES)
@pytest.mark.parametrize("name", ["set.jsonl", "set.jsonl.gz"])
def test_a_malformed_line_is_refused_by_its_number(tmp_path: Path, kind: str, name: str) -> None:
    line, reason = BAD_LINES[kind]
    write_conversations(tmp_path / name, made(3), CODEBOOK, 0)
    opened = gzip.open if name.endswith(".gz") else open
    with opened(tmp_path / name, "rt", encoding="utf-8") as file:
        lines = file.read().splitlines()
    lines[2] = line
    with opened(tmp_path / name, "wt", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    with pytest.raises(RecordError) as error:
        list(read_conversations(tmp_path / name))
    assert str(error.value).startswith(f"{tmp_path / name}:3: ")
    assert reason in str(error.value)


def test_a_set_cut_short_is_refused(tmp_path: Path) -> None:
    for name in ("set.jsonl", "set.jsonl.gz"):
        write_conversations(tmp_path / name, made(200), CODEBOOK, 0)
        whole = (tmp_path / name).read_bytes()
        cut = whole[: whole.rindex(b"\n", 0, len(whole) - 1) + 1] if name == "set.jsonl" else whole[:-200]
        (tmp_path / name).write_bytes(cut)
        with pytest.raises(RecordError, match=f"{name}.*cut short"):
            list(read_conversations(tmp_path / name))


def test_a_damaged_set_is_refused(tmp_path: Path) -> None:
    write_conversations(tmp_path / "set.jsonl.gz", made(200), CODEBOOK, 0)
    whole = (tmp_path / "set.jsonl.gz").read_bytes()
    (tmp_path / "set.jsonl.gz").write_bytes(whole[:10] + b"\xff" * 20 + whole[30:])
    with pytest.raises(RecordError, match="set.jsonl.gz:1: not the header"):
        read_conversations(tmp_path / "set.jsonl.gz")
    write_conversations(tmp_path / "set.jsonl", made(200), CODEBOOK, 0)
    whole = (tmp_path / "set.jsonl").read_bytes()
    (tmp_path / "set.jsonl").write_bytes(whole.replace(b"c150", b"c\xff50"))
    with pytest.raises(RecordError, match="set.jsonl:.*damaged .*utf-8"):
        list(read_conversations(tmp_path / "set.jsonl"))


def test_a_header_that_is_none_is_refused(tmp_path: Path) -> None:
    header = {"format": "conversations/1", "codebook": dataclasses.asdict(CODEBOOK), "seed": 0, "counts": {}}
    bad = [
        "",
        "{",
        "[]",
        "{}",
        json.dumps({**header, "format": "conversations/9"}),
        json.dumps({**header, "codebook": {"a": 1}}),
        json.dumps({k: v for k, v in header.items() if k != "counts"}),
    ]
    path = tmp_path / "set.jsonl"
    for line in bad:
        path.write_text(f"{line}\n" if line else "")
        with pytest.raises(RecordError, match="set.jsonl:1: not the header"):
            read_conversations(path)
    (tmp_path / "set.jsonl.gz").write_text("not compressed")
    with pytest.raises(RecordError, match="set.jsonl.gz:1: not the header"):
        read_conversations(tmp_path / "set.jsonl.gz")
    with pytest.raises(FileNotFoundError):
        read_conversations(tmp_path / "absent.jsonl")


def test_units_need_a_codebook(tmp_path: Path) -> None:
    write_conversations(tmp_path / "set.jsonl", made(1), None, 0)
    with pytest.raises(RecordError, match="names no codebook"):
        list(read_conversations(tmp_path / "set.jsonl"))


def test_a_foreign_codebook_is_refused_where_it_is_used(tmp_path: Path, widened: Path, mfcc_encoder) -> None:
    tokenizer, path = AutoTokenizer.from_pretrained(widened), tmp_path / "set.jsonl"
    config = StageConfig("stage2", "stage1", "stage2", [Source("set.jsonl")], tmp_path, training={"max_steps": 1})
    write_conversations(path, made(2), mfcc_encoder.codebook, 0)
    assert len(list(documents(config.data[0], path, tokenizer, config, mfcc_encoder.codebook))) == 2
    write_conversations(path, made(2), CODEBOOK, 0)
    with pytest.raises(CodebookMismatch, match="set.jsonl speaks the codebook 'tiny'"):
        list(documents(config.data[0], path, tokenizer, config, mfcc_encoder.codebook))


# --- making them


def spoken(record_id: str, sentence: str | None, speaker: str, ids: tuple[int, ...] = (1, 2)) -> UnitRecord:
    return UnitRecord(record_id, Units(ids, (1,) * len(ids), CODEBOOK), 16_000, sentence, speaker)


RECORDS = [
    spoken("q0", "what is one", "tone:high", (1,)),
    spoken("q1", "what is two", "tone:high", (2,)),
    spoken("q2", "the sky is blue", "tone:high", (3,)),
    spoken("q3", "what is three", "tone:high", (4,)),
    spoken("q4", None, "tone:high", (5,)),
    spoken("a0", "it is one", VOICE, (6,)),
    spoken("a1", "it is two", VOICE, (7,)),
]
PAIRS = [TextPair(f"what is {n}", f"it is {n}") for n in ("one", "two", "three")]


def cross_modal(folder: Path, task: str, records: list[UnitRecord], seed: int = 0, **settings) -> list[Conversation]:
    unit_set = write_unit_set(folder, records, CODEBOOK)
    parts = shard_parts(unit_set, task, seed, Splits(), **settings)
    return [conversation for part in parts for _, conversation in part.conversations(Refusals())]


def test_cross_modal_sets(tmp_path: Path) -> None:
    heard, read_out = cross_modal(tmp_path, "asr", RECORDS), cross_modal(tmp_path, "tts", RECORDS, speaker=VOICE)
    assert [c.id for c in heard] == ["asr-q0", "asr-q1", "asr-q2", "asr-q3", "asr-a0", "asr-a1"]
    assert [c.id for c in read_out] == ["tts-a0", "tts-a1"]
    described, said = heard[0].messages[0].parts
    assert described.removesuffix(f" {INPUT_FOLLOWS}") in read_instructions("asr")
    assert (said, heard[0].messages[1].parts) == ((1,), ("what is one",))
    assert read_out[0].messages[0].parts[0].endswith(f"{INPUT_FOLLOWS} it is one")
    assert read_out[0].messages[1].parts == ((6,),)
    assert cross_modal(tmp_path, "asr", RECORDS[::-1]) == heard[::-1]  # a draw does not depend on the order
    assert cross_modal(tmp_path, "asr", RECORDS, 1) != heard
    with pytest.raises(FileNotFoundError, match="'sing'.*asr"):
        read_instructions("sing")


def test_build_makes_the_sets_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "units").mkdir()
    write_shard(shard_path(tmp_path / "units", 0), RECORDS, CODEBOOK)
    facts = {
        "codebook": dataclasses.asdict(CODEBOOK),
        "utterances": len(RECORDS),
        "refused": 0,
        "seconds": 7.0,
        "shards": 1,
    }
    (tmp_path / "units" / COMPLETION_FILE).write_text(json.dumps(facts))
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(dataclasses.asdict(pair)) + "\n" for pair in PAIRS))
    for out in ("first", "second"):
        build(tmp_path / "units", tmp_path / "pairs.jsonl", VOICE, tmp_path / out, seed=5)
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name
    report = json.loads((tmp_path / "first" / "build.json").read_text())
    assert report["counts"] == {
        "text": {"chat": 3, "repeat": 3},
        "cross_modal": {"asr": 6, "tts": 2},
        "chain": {"chain": 2},
    }
    assert report["refused"]["chain"] == {"not_a_question": 2, "no_spoken_answer": 1}
    assert read_conversations(tmp_path / "first" / "text.jsonl.gz").codebook is None
    assert read_conversations(tmp_path / "first" / "chain.jsonl.gz").codebook == CODEBOOK
    assert len(list(read_conversations(tmp_path / "first" / "cross_modal.jsonl.gz"))) == 8
    chain = list(read_conversations(tmp_path / "first" / "chain.jsonl.gz"))
    assert [c.id for c in chain] == ["chain-q0", "chain-q1"] and chain[1].messages[0].parts == ((2,),)
    assert chain[1].messages[1].parts == ("what is two", "it is two", (7,))
    with pytest.raises(ValueError, match="--voice is 'tone:none'"):
        build(tmp_path / "units", tmp_path / "pairs.jsonl", "tone:none", tmp_path / "third")
