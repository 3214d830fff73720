"""Text sets on disk: both forms, bad lines, compression, and the balance of families."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from instruct_data.build import text_parts
from instruct_data.build.splits import Splits
from instruct_data.build.text_parts import BalancedPart, family_copies, repeat_conversation
from instruct_data.text.chats import ChatError, TextChat, TextPair, chat_line, parse_chat, read_chats
from instruct_data.text.reasons import TextReason
from units.runtime.refusals import Refusals, listed_refusals


def test_a_question_may_hold_any_text(tmp_path: Path) -> None:
    pair = {"question": "a\u2028b\x85c", "answer": "d\ne"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair, ensure_ascii=False) + "\n", encoding="utf-8")
    assert list(read_chats(tmp_path / "pairs.jsonl", Refusals())) == [TextChat((TextPair(**pair),))]


BAD_LINES = {
    "{": TextReason.NOT_JSON,
    "[" * 100_000: TextReason.NOT_JSON,
    "[]": TextReason.NOT_AN_OBJECT,
    '{"question": "a"}': TextReason.NO_TURN,
    '{"question": "a", "answer": ""}': TextReason.NO_TURN,
    '{"question": 1, "answer": "b"}': TextReason.NO_TURN,
    '{"turns": [["a", ""]]}': TextReason.NO_TURN,
    '{"turns": ["ab"]}': TextReason.WRONG_TYPE,
    '{"turns": [["a", "b", "c"]]}': TextReason.WRONG_TYPE,
    '{"turns": []}': TextReason.WRONG_TYPE,
    '{"question": "a", "answer": "\\ud83d"}': TextReason.LONE_SURROGATE,
    '{"question": "a", "answer": " "}': TextReason.NO_WORD,
    '{"question": "???", "answer": "a"}': TextReason.NO_WORD,
    '{"turns": [["a", "b"], ["c", "..."]]}': TextReason.NO_WORD,
    '{"question": "a", "answer": "\U0001f600"}': TextReason.NO_WORD,
}


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: line[:30])
def test_a_bad_line_is_refused_with_its_number_and_a_code(tmp_path: Path, line: str) -> None:
    with pytest.raises(ChatError) as raised:
        parse_chat(line)
    assert raised.value.reason == BAD_LINES[line]
    (tmp_path / "pairs.jsonl").write_text('{"question": "a", "answer": "b", "extra": 1}\n' + line + "\n")
    with listed_refusals(tmp_path / "refused.jsonl") as refusals:
        assert len(list(read_chats(tmp_path / "pairs.jsonl", refusals))) == 1
    row = json.loads((tmp_path / "refused.jsonl").read_text())
    assert (row["id"], row["reason"]) == (f"{tmp_path / 'pairs.jsonl'}:2", BAD_LINES[line].value)


def test_byte_order_marks_blank_lines_and_compression_make_no_difference(tmp_path: Path) -> None:
    lines = '\ufeff{"question": "what do wheels do", "answer": "turns"}\r\n\n{"question": "c", "answer": "turns"}\n \n'
    (tmp_path / "pairs.jsonl").write_bytes(lines.encode())
    (tmp_path / "pairs.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for name in ("pairs.jsonl", "pairs.jsonl.gz"):
        refusals = Refusals()
        chats = list(read_chats(tmp_path / name, refusals))
        assert [chat.turns[0].question for chat in chats] == ["what do wheels do", "c"] and not refusals.counts
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(lines.encode())[:-20])
    with pytest.raises(ValueError, match="cut.jsonl.gz"):
        list(read_chats(tmp_path / "cut.jsonl.gz", Refusals()))


def test_a_part_begins_where_the_one_before_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_parts, "PART_LINES", 2)
    lines = "".join(f'{{"question": "q{i}", "answer": "a"}}\n' for i in range(5))
    (tmp_path / "pairs.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    parts = text_parts.chat_parts(tmp_path / "pairs.jsonl.gz", "chat", 0, Splits())
    assert [part.rows for part in parts] == [2, 2, 1]
    assert [index for part in parts for index, _ in part.lines(Refusals())] == list(range(5))


def test_families_are_balanced() -> None:
    families = [(i, "many" if i % 10 else "few") for i in range(100)]
    times = family_copies(families, 1, 20, seed=1)
    assert [sum(number % 10 == 0 for number in times), len(times)] == [10, 30]
    assert times == family_copies(families, 1, 20, seed=1) and set(times.values()) == {1}
    assert family_copies(families, 1, None, seed=1) == dict.fromkeys(range(100), 1)
    balanced = family_copies(families, 20, 20, seed=1)
    assert set(balanced) == set(times)
    assert [balanced[number] for number in sorted(balanced) if number % 10 == 0] == [2] * 10
    assert {balanced[number] for number in balanced if number % 10} == {1}


def test_a_balanced_set_streams_chats_of_several_turns_and_counts_refusals(tmp_path: Path) -> None:
    several = TextChat((TextPair("first", "one", family="few"), TextPair("second", "two", family="few")))
    many = [TextChat((TextPair(f"q{i}", "a", family="many"),)) for i in range(6)]
    (tmp_path / "pairs.jsonl").write_text("".join(map(chat_line, [*many, several])) + "no json\n")
    refusals = Refusals()
    chats, repeats = (BalancedPart(tmp_path / "pairs.jsonl", 8, t, 4, 4, 0, Splits()) for t in ("chat", "repeat"))
    parts = ((chats, refusals), (repeats, Refusals()))
    found = [conversation for part, counted in parts for _, conversation in part.conversations(counted)]
    assert [c.id for c in found] == [f"{task}-{i}" for task in ("chat", "repeat") for i in range(8)]
    assert Counter(len(c.messages) for c in found if c.task == "chat") == {2: 4, 4: 4}
    assert found[-1].messages[1].parts == ("first", "one") and refusals.counts == {TextReason.NOT_JSON: 1}


def test_a_repeat_conversation_has_the_question_before_the_answer() -> None:
    pairs = [TextPair("what is one plus one", "that makes two"), TextPair("which is bigger", "two is bigger")]
    found = [repeat_conversation(pair, i, seed=0) for i, pair in enumerate(pairs)]
    assert [c.messages[1].parts for c in found] == [(p.question, p.answer) for p in pairs]
    assert all(c.task == "repeat" and c.messages[0].parts[0].endswith(f"{p.question}") for c, p in zip(found, pairs))
