"""Published text sets in their forms; filters that count under their names; text as it is spoken."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruct_data import text_sources
from instruct_data.filters import Filters, is_unspeakable, word_count
from instruct_data.refusals import Refusals
from instruct_data.spoken_form import speakable
from instruct_data.text_sets import TextChat, TextPair, parse_chat
from instruct_data.text_sources import FORMS, read_source

RAW = Filters(1000, 1000, False, False, False, False, False, None, False)
TWO = [("Who was Ada?", "A mathematician."), ("When?", "From 1815.")]


def tree(role: str, text: str, *replies: dict, rank: int | None = None) -> dict:
    return {"role": role, "text": text, "replies": list(replies), "rank": rank}


WORST = tree("assistant", "Who knows.", rank=1)
TREE = {
    "prompt": tree(
        "prompter",
        TWO[0][0],
        WORST,
        tree("assistant", TWO[0][1], tree("prompter", TWO[1][0], tree("assistant", TWO[1][1])), rank=0),
    )
}
FLAT = [
    {"message_tree_id": "t", "message_id": "a", "parent_id": None, "role": "prompter", "text": TWO[0][0], "rank": None},
    {"message_tree_id": "t", "message_id": "b", "parent_id": "a", "role": "assistant", "text": "Who knows.", "rank": 1},
    {"message_tree_id": "t", "message_id": "c", "parent_id": "a", "role": "assistant", "text": TWO[0][1], "rank": 0},
    {"message_tree_id": "t", "message_id": "d", "parent_id": "c", "role": "prompter", "text": TWO[1][0], "rank": None},
    {"message_tree_id": "t", "message_id": "e", "parent_id": "d", "role": "assistant", "text": TWO[1][1], "rank": None},
    {"message_tree_id": "u", "message_id": "f", "parent_id": "gone", "role": "prompter", "text": "x", "rank": None},
]  # fmt: skip
MOSS_TEXT = "".join(f"[Human]: {q}<eoh> [MOSS]: {a}<eoa> " for q, a in TWO)
PUBLISHED: dict[str, tuple[str, list[dict], list[tuple[str, str]]]] = {
    "plain": ("plain", [{"question": TWO[0][0], "answer": TWO[0][1], "extra": 1}], TWO[:1]),
    "plain turns": ("plain", [{"turns": TWO}], TWO),
    "alpaca": ("alpaca", [{"instruction": "Add.", "input": "1 and 2", "output": "3"}], [("Add.\n1 and 2", "3")]),
    "alpaca without input": ("alpaca", [{"instruction": TWO[0][0], "input": "", "output": TWO[0][1]}], TWO[:1]),
    "moss text": ("moss", [{"id": 1, "prefix": "MOSS is", "num_turns": 2, "plain_text": MOSS_TEXT}], TWO),
    "moss turns": ("moss", [{"chat": {
        "turn_2": {"Human": f"<|Human|>: {TWO[1][0]}<eoh>\n", "MOSS": f"<|MOSS|>: {TWO[1][1]}<eom>\n"},
        "turn_1": {"Human": f"<|Human|>: {TWO[0][0]}<eoh>\n", "MOSS": "<|MOSS|>: A mathematician<sup><|1|></sup>.<eom>\n"},
    }}], TWO),
    "sharegpt": ("sharegpt", [{"id": "x", "conversations": [{"from": "system", "value": "Be kind."}] + [
        {"from": who, "value": text} for turn in TWO for who, text in zip(("human", "gpt"), turn)]}], TWO),
    "sharegpt begun in the middle": ("sharegpt", [{"conversations": [{"from": "gpt", "value": "So."}, {"from": "human", "value": TWO[0][0]},
        {"from": "gpt", "value": TWO[0][1]}, {"from": "human", "value": "bye"}]}], TWO[:1]),
    "dolly": ("dolly", [{"instruction": TWO[0][0], "context": "", "response": TWO[0][1], "category": "open_qa"}], TWO[:1]),
    "openassistant trees": ("openassistant", [TREE], TWO),
    "openassistant messages": ("openassistant", FLAT, TWO),
    "ultrachat": ("ultrachat", [{"id": "0", "data": [text for turn in TWO for text in turn]}], TWO),
    "ultrachat messages": ("ultrachat", [{"messages": [
        {"role": who, "content": text} for turn in TWO for who, text in zip(("user", "assistant"), turn)]}], TWO),
}  # fmt: skip


@pytest.mark.parametrize("ending", ["jsonl", "json", "jsonl.gz", "parquet"])
@pytest.mark.parametrize("kind", PUBLISHED)
def test_each_published_form_is_read_from_each_kind_of_file(tmp_path: Path, kind: str, ending: str) -> None:
    form, rows, expected = PUBLISHED[kind]
    path = tmp_path / f"set.{ending}"
    if ending == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        if kind == "openassistant trees":
            pytest.skip("parquet has no trees of any depth")
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        text = json.dumps(rows, indent=1) if ending == "json" else "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if ending.endswith("gz") else text.encode())
    refusals = Refusals()
    ((_, chat),) = read_source(path, form, refusals)
    assert [(turn.question, turn.answer) for turn in chat.turns] == expected
    assert refusals.counts == ({"its parent is not among its neighbours": 1} if rows is FLAT else {})


def test_a_family_and_a_split_stay(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "a", "answer": "b", "family": "sum", "split": "dev"}\n')
    ((_, chat),) = read_source(tmp_path / "a.jsonl", "plain", Refusals())
    assert chat.turns == (TextPair("a", "b", "dev", "sum"),)


BAD_ROWS = {
    "plain": [({"question": "a"}, "a field is missing"), ({"question": 1, "answer": "b"}, "a field has another type"),
              ([1], "not an object"), ({"turns": []}, "no question with an answer")],
    "moss": [({"plain_text": "hello"}, "no question with an answer"), ({"text": ""}, "a field is missing")],
    "sharegpt": [({"conversations": [{"from": "human", "value": "a"}] * 2}, "one side speaks twice in a row"),
                 ({"conversations": [{"from": "narrator", "value": "a"}]}, "unknown role"), ({"conversations": 3}, "a field has another type")],
    "openassistant": [({"prompt": {"text": "a", "role": "prompter"}}, "no question with an answer")],
}  # fmt: skip


@pytest.mark.parametrize("form", BAD_ROWS)
@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_a_bad_row_is_counted_and_the_rest_is_kept(tmp_path: Path, form: str, ending: str) -> None:
    good = next(rows[0] for of, rows, _ in PUBLISHED.values() if of == form)
    rows = [row for bad, _ in BAD_ROWS[form] for row in (bad, good)]
    path = tmp_path / f"set.{ending}"
    path.write_text(json.dumps(rows) if ending == "json" else "".join(json.dumps(row) + "\n" for row in rows))
    refusals = Refusals()
    assert len(list(read_source(path, form, refusals))) == len(BAD_ROWS[form])
    assert set(refusals.counts) == {reason for _, reason in BAD_ROWS[form]}


def test_a_damaged_file_gives_what_stands_before_the_damage(tmp_path: Path) -> None:
    (tmp_path / "set.json").write_text('[{"question": "a", "answer": "b"}, {"question": ')
    (tmp_path / "set.jsonl").write_text(
        '{"question": "a", "answer": "b"}\n{"question"\n{"question": "c", "answer": "d"}\n'
    )
    for name, kept, reason in (("set.json", 1, "the array is damaged from here on"), ("set.jsonl", 2, "not JSON")):
        refusals = Refusals()
        assert len(list(read_source(tmp_path / name, "plain", refusals))) == kept
        assert refusals.counts == {reason: 1}
    with pytest.raises(ValueError, match=r"unknown form 'tales'; there are plain, alpaca"):
        next(read_source(tmp_path / "set.json", "tales", Refusals()))
    assert set(FORMS) == {"plain", "alpaca", "moss", "sharegpt", "dolly", "openassistant", "ultrachat"}


# --- filters

GOOD = TextPair("What is a cat?", "A small animal that likes milk.")
REFUSED = {
    "long answer": TextPair("Why?", "so " * 36),
    "long question": TextPair("why " * 61, "So."),
    "code": TextPair("How do I loop?", "Write\n```\nfor x in y: pass\n```"),
    "url": TextPair("Where is it?", "Look at https://example.org/a for it."),
    "table": TextPair("Show me.", "| a | b |\n| 1 | 2 |"),
    "list": TextPair("Name two.", "1. one thing\n2. another thing"),
    "unspeakable": TextPair("How are you?", "Fine \U0001f600"),
    "language": TextPair("Was ist das hier?", "Das ist ein kleines Tier, das gerne Milch trinkt."),
    "empty": TextPair("What is it?", "**"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_each_filter_counts_under_its_name(name: str) -> None:
    refusals = Refusals()
    filters = Filters(language="en")
    turn = REFUSED[name] if name != "empty" else TextPair("What is it?", "  ")
    assert filters.apply(TextChat((turn,)), "here", refusals) is None
    assert refusals.counts == {name: 1}
    assert RAW.apply(TextChat((REFUSED[name],)), "here", refusals) is not None  # switched off, it refuses nothing


def test_a_chat_is_cut_before_its_first_bad_turn() -> None:
    refusals = Refusals()
    kept = Filters().apply(TextChat((GOOD, REFUSED["url"], GOOD)), "here", refusals)
    assert kept == TextChat((GOOD,)) and refusals.counts == {"url": 1}


def test_the_papers_limit_is_35_words() -> None:
    assert Filters().reason(*[TextPair("Why?", "so " * 35)] * 2) is None
    assert Filters().reason(*[TextPair("Why?", "so " * 36)] * 2) == "long answer"
    assert word_count("\u4f60\u597d \u4e16\u754c") == 4


@pytest.mark.parametrize("text", ["plain", "\u00fcber \u00e9t\u00e9", "\u4f60\u597d\uff0c\u4e16\u754c\u3002", "\u0645\u0631\u062d\u0628\u0627\u061f", "it\u2019s \u201cfine\u201d \u2014 yes", "\u0928\u092e\u0938\u094d\u0924\u0947"])  # fmt: skip
def test_what_can_be_said_is_speakable(text: str) -> None:
    assert not is_unspeakable(text)
    assert is_unspeakable(text + "\u2192") and is_unspeakable(text + "\x07")


def test_a_set_is_made_with_its_refusals_listed(tmp_path: Path) -> None:
    turns = [GOOD, *REFUSED.values(), GOOD]
    rows = [{"instruction": turn.question, "input": "", "output": turn.answer} for turn in turns]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    text_sources.main(tmp_path / "a.json", "alpaca", tmp_path / "chats.jsonl", Filters(language="en"))
    lines = (tmp_path / "chats.jsonl").read_text(encoding="utf-8").splitlines()
    assert [parse_chat(line, "x").turns for line in lines] == [(GOOD,), (GOOD,)]
    listed = [json.loads(line) for line in (tmp_path / "chats.jsonl.refused.jsonl").read_text().splitlines()]
    assert [one["where"] for one in listed] == [f"{tmp_path / 'a.json'}:{i}" for i in range(2, len(turns))]
    text_sources.main([tmp_path / "a.json"] * 2, "alpaca", tmp_path / "chats.jsonl", Filters(language="en"))
    assert len((tmp_path / "chats.jsonl").read_text().splitlines()) == 4


# --- text as it is spoken

SPOKEN = {
    "Dr. Wu ran 5 km on May 3, 1999 for $2.50.": "Doctor Wu ran five kilometers on May third, nineteen ninety-nine for two dollars, fifty cents.",
    "It is 20\u00b0C at 10:05.": "It is twenty degrees Celsius at ten oh five.",
    "at 12:00 or 9am": "at twelve o'clock or nine a m",
    "It costs $3 million, 50% of 1,250,000.": "It costs three million dollars, fifty percent of one million, two hundred and fifty thousand.",
    "1990-1995": "nineteen ninety to nineteen ninety-five",
    "the 1980s": "the nineteen eighties",
    "2023-04-12": "April twelfth, twenty twenty-three",
    "12/25/2020": "December twenty-fifth, twenty twenty",
    "3 January 2001": "the third of January, two thousand and one",
    "2 + 2 = 4": "two plus two equals four",
    "3.14 and -5": "three point one four and minus five",
    "the 3rd of 22nd": "the third of twenty-second",
    "1 kg, 2 kg": "one kilogram, two kilograms",
    "3/4 of it, 1/2": "three quarters of it, one half",
    "**bold** and *it*": "bold and it",
    "salt & pepper, e.g. here": "salt and pepper, for example here",
    "\u20ac5.20": "five euro, twenty cents",
    "nothing to change here.": "nothing to change here.",
    "$" + "9" * 400: "nine " * 400 + "USD",
}


@pytest.mark.parametrize("text", SPOKEN)
def test_text_is_written_as_it_is_spoken(text: str) -> None:
    assert speakable(text) == SPOKEN[text]


def test_numbers_are_said_in_other_languages() -> None:
    assert speakable("Ich habe 42 \u00c4pfel", "de") == "Ich habe zweiundvierzig \u00c4pfel"
    assert speakable("J'ai 21 ans", "fr") == "J'ai vingt et un ans"


@given(text=st.text(max_size=40), language=st.sampled_from(["en", "de", "xx"]))
def test_any_text_has_a_spoken_form(text: str, language: str) -> None:
    assert isinstance(speakable(text, language), str)


@given(number=st.integers(0, 10**40))
def test_no_digit_of_a_number_is_left_unsaid(number: int) -> None:
    said = speakable(f"about {number} of them")
    assert said.startswith("about ") and said.endswith(" of them")
    assert not any(c.isdigit() for c in said)
