"""Published formats of text sets; filters that count under their reason codes; text as it is spoken."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from refused import refused

from instruct_data.text import rows as text_rows
from instruct_data.text import sources as text_sources
from instruct_data.text.chats import TextChat, TextPair, parse_chat
from instruct_data.text.filters import Filters
from instruct_data.text.published import FORMATS
from instruct_data.text.reasons import FILTERED, TextReason
from instruct_data.text.sources import NothingKept, exit_code, read_source
from instruct_data.text.speakability import is_unspeakable, word_count
from units.runtime.command import SOME_REFUSED
from units.runtime.files.json_files import FileReason
from units.runtime.refusals import CommonReason, Refusals

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
]
RELEASED = [{name: value for name, value in row.items() if value is not None} for row in FLAT]  # exclude_none=True
MOSS_TEXT = "".join(f"[Human]: {q}<eoh> [MOSS]: {a}<eoa> " for q, a in TWO)
PUBLISHED: dict[str, tuple[str, list[dict], list[tuple[str, str]]]] = {
    "plain": ("plain", [{"question": TWO[0][0], "answer": TWO[0][1], "extra": 1}], TWO[:1]),
    "plain turns": ("plain", [{"turns": TWO}], TWO),
    "alpaca": ("alpaca", [{"instruction": "Add.", "input": "1 and 2", "output": "3"}], [("Add.\n1 and 2", "3")]),
    "alpaca without input": ("alpaca", [{"instruction": TWO[0][0], "input": "", "output": TWO[0][1]}], TWO[:1]),
    "moss text": ("moss", [{"id": 1, "prefix": "MOSS is", "num_turns": 2, "plain_text": MOSS_TEXT}], TWO),
    "moss turns": (
        "moss",
        [
            {
                "chat": {
                    "turn_2": {"Human": f"<|Human|>: {TWO[1][0]}<eoh>\n", "MOSS": f"<|MOSS|>: {TWO[1][1]}<eom>\n"},
                    "turn_1": {
                        "Human": f"<|Human|>: {TWO[0][0]}<eoh>\n",
                        "MOSS": "<|MOSS|>: A mathematician<sup><|1|></sup>.<eom>\n",
                    },
                }
            }
        ],
        TWO,
    ),
    "sharegpt": (
        "sharegpt",
        [
            {
                "id": "x",
                "conversations": [{"from": "system", "value": "Be kind."}]
                + [{"from": who, "value": text} for turn in TWO for who, text in zip(("human", "gpt"), turn)],
            }
        ],
        TWO,
    ),
    "sharegpt begun in the middle": (
        "sharegpt",
        [
            {
                "conversations": [
                    {"from": "gpt", "value": "So."},
                    {"from": "human", "value": TWO[0][0]},
                    {"from": "gpt", "value": TWO[0][1]},
                    {"from": "human", "value": "bye"},
                ]
            }
        ],
        TWO[:1],
    ),
    "dolly": (
        "dolly",
        [{"instruction": TWO[0][0], "context": "", "response": TWO[0][1], "category": "open_qa"}],
        TWO[:1],
    ),
    "openassistant trees": ("openassistant", [TREE], TWO),
    "openassistant messages": ("openassistant", FLAT, TWO),
    "openassistant messages as released": ("openassistant", RELEASED, TWO),
    "ultrachat": ("ultrachat", [{"id": "0", "data": [text for turn in TWO for text in turn]}], TWO),
    "ultrachat messages": (
        "ultrachat",
        [
            {
                "messages": [
                    {"role": who, "content": text} for turn in TWO for who, text in zip(("user", "assistant"), turn)
                ]
            }
        ],
        TWO,
    ),
}


# Parquet has no trees of any depth, and writes a missing field as null.
NOT_PARQUET = ("openassistant trees", "openassistant messages as released")
FILES = [(kind, ending) for kind in PUBLISHED for ending in ("jsonl", "json", "jsonl.gz", "parquet")]


@pytest.mark.parametrize("kind, ending", [pair for pair in FILES if pair not in [(k, "parquet") for k in NOT_PARQUET]])
def test_each_published_format_is_read_from_each_kind_of_file(tmp_path: Path, kind: str, ending: str) -> None:
    form, rows, expected = PUBLISHED[kind]
    path = tmp_path / f"set.{ending}"
    if ending == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        text = json.dumps(rows, indent=1) if ending == "json" else "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if ending.endswith("gz") else text.encode())
    refusals = Refusals()
    ((_, chat),) = read_source(path, form, refusals)
    assert [(turn.question, turn.answer) for turn in chat.turns] == expected
    assert refusals.counts == ({TextReason.NO_PARENT: 1} if form == "openassistant" and len(rows) > 1 else {})


def test_a_family_and_a_split_stay(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "a", "answer": "b", "family": "sum", "split": "dev"}\n')
    ((_, chat),) = read_source(tmp_path / "a.jsonl", "plain", Refusals())
    assert chat.turns == (TextPair("a", "b", "dev", "sum"),)


BAD_ROWS = {
    "plain": [
        ({"question": "a"}, TextReason.MISSING_FIELD),
        ({"question": 1, "answer": "b"}, TextReason.WRONG_TYPE),
        ([1], TextReason.NOT_AN_OBJECT),
        ({"turns": []}, TextReason.NO_TURN),
    ],
    "moss": [({"plain_text": "hello"}, TextReason.NO_TURN), ({"text": ""}, TextReason.MISSING_FIELD)],
    "sharegpt": [
        ({"conversations": [{"from": "human", "value": "a"}] * 2}, TextReason.ROLES_DO_NOT_ALTERNATE),
        ({"conversations": [{"from": "narrator", "value": "a"}]}, TextReason.UNKNOWN_ROLE),
        ({"conversations": 3}, TextReason.WRONG_TYPE),
    ],
    "openassistant": [({"prompt": {"text": "a", "role": "prompter"}}, TextReason.NO_TURN)],
}


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
    for name, kept, reason in (("set.json", 1, TextReason.DAMAGED_ARRAY), ("set.jsonl", 2, TextReason.NOT_JSON)):
        refusals = Refusals()
        assert len(list(read_source(tmp_path / name, "plain", refusals))) == kept
        assert refusals.counts == {reason: 1}
    with pytest.raises(ValueError, match="'tales'.*plain, alpaca"):
        next(read_source(tmp_path / "set.json", "tales", Refusals()))
    assert set(FORMATS) == {"plain", "alpaca", "moss", "sharegpt", "dolly", "openassistant", "ultrachat"}


ODD = [
    '{"question": "a\tb", "answer": "c", "x": NaN}',
    '{"question": "a", "answer": "b\\ud83d"}',
    '{"question": "c", "answer": "d"}',
]


@pytest.mark.parametrize("ending", ["json", "jsonl", "json.gz"])
def test_rows_that_are_not_valid_json_lose_no_other_row(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_rows, "CHUNK", 7)
    text = "\ufeff" + ("\n".join(ODD) if ending == "jsonl" else f"[{', '.join(ODD)}, 12 ]")
    text += "\n\n12" if ending == "jsonl" else ""
    data = text.encode().replace(b'"d"', b'"\xc3\xa4"')
    (tmp_path / f"a.{ending}").write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    refusals = Refusals()
    found = [chat.turns[0] for _, chat in read_source(tmp_path / f"a.{ending}", "plain", refusals)]
    assert found == [TextPair("a\tb", "c"), TextPair("c", "\u00e4")]
    assert refusals.counts == {TextReason.LONE_SURROGATE: 1, TextReason.NOT_AN_OBJECT: 1}


@pytest.mark.parametrize("ending, reason", [("json", TextReason.LONE_SURROGATE), ("jsonl", TextReason.NOT_JSON)])
def test_a_row_of_another_encoding_is_refused_alone(tmp_path: Path, ending: str, reason: TextReason) -> None:
    rows = [b'{"question": "\xe4", "answer": "b"}', b'{"question": "c", "answer": "d"}']
    (tmp_path / f"a.{ending}").write_bytes(b"\n".join(rows) if ending == "jsonl" else b"[" + b",".join(rows) + b"]")
    refusals = Refusals()
    assert len(list(read_source(tmp_path / f"a.{ending}", "plain", refusals))) == 1
    assert refusals.counts == {reason: 1}


# --- filters

GOOD = TextPair("What is a cat?", "A small animal that likes milk.")
REFUSED = {
    TextReason.LONG_ANSWER: TextPair("Why?", "so " * 36),
    TextReason.LONG_QUESTION: TextPair("why " * 61, "So."),
    TextReason.CODE: TextPair("How do I loop?", "Write\n```\nfor x in y: pass\n```"),
    TextReason.URL: TextPair("Where is it?", "Look at https://example.org/a for it."),
    TextReason.TABLE: TextPair("Show me.", "| a | b |\n| 1 | 2 |"),
    TextReason.LIST: TextPair("Name two.", "1. one thing\n2. another thing"),
    TextReason.UNSPEAKABLE: TextPair("How are you?", "Fine \U0001f600"),
    TextReason.LANGUAGE: TextPair("Was ist das hier?", "Das ist ein kleines Tier, das gerne Milch trinkt."),
    TextReason.EMPTY: TextPair("What is it?", "  "),
    TextReason.NO_WORD: TextPair("What is it?", "?? \u2026 \U0001f600"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_each_filter_counts_under_its_code(reason: TextReason) -> None:
    refusals = Refusals()
    filters = Filters(language="en")
    assert filters.apply(TextChat((REFUSED[reason],)), "here", refusals) is None
    assert refusals.counts == {reason: 1} and reason in FILTERED
    if reason not in (TextReason.EMPTY, TextReason.NO_WORD):  # these filters cannot be switched off
        assert RAW.apply(TextChat((REFUSED[reason],)), "here", refusals) is not None


def test_a_chat_is_cut_before_its_first_bad_turn() -> None:
    refusals = Refusals()
    kept = Filters().apply(TextChat((GOOD, REFUSED[TextReason.URL], GOOD)), "here", refusals)
    assert kept == TextChat((GOOD,)) and refusals.counts == {TextReason.URL: 1}


def test_the_papers_limit_is_35_words() -> None:
    assert Filters().reason(*[TextPair("Why?", "so " * 35)] * 2) is None
    assert Filters().reason(*[TextPair("Why?", "so " * 36)] * 2) == TextReason.LONG_ANSWER
    assert word_count("\u4f60\u597d\uff0c\u4e16\u754c\u3002") == 4  # Chinese: characters, without punctuation
    assert word_count("\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4") == 2  # Korean has spaces
    assert word_count("\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01") == 3  # Thai has none
    assert word_count("It's well-known - so.") == 3


@pytest.mark.parametrize(
    "text",
    [
        "so\u00a0ein \u201eZitat\u201c",
        "l\u2019eau\u202f!",
        "\u300c\u306f\u3044\u300d\u3000\u30a2\u30fb\u30a4",
        "\u0928\u092e\u0938\u094d\u0924\u0947\u0964",
        "\u0645\u06cc\u200c\u0631\u0648\u0645",
        "two\r\nlines",
        "plain",
        "\u00fcber \u00e9t\u00e9",
        "\u4f60\u597d\uff0c\u4e16\u754c\u3002",
        "\u0645\u0631\u062d\u0628\u0627\u061f",
        "it\u2019s \u201cfine\u201d \u2014 yes",
        "\u0928\u092e\u0938\u094d\u0924\u0947",
    ],
)
def test_letters_and_silent_punctuation_are_speakable(text: str) -> None:
    assert not is_unspeakable(text)
    for character in "\u2192\x07\t#/@{_$\U0001f600":
        assert is_unspeakable(text + character)


def test_a_language_may_be_written_in_many_ways() -> None:
    assert [Filters(language=code).language for code in ("en", "EN", "en-US", "pt_BR", None)] == [
        "en",
        "en",
        "en",
        "pt",
        None,
    ]
    with pytest.raises(ValueError, match="'english'.* ace af am .* en "):
        Filters(language="english")


@pytest.mark.parametrize(
    "question, answer, said",
    [
        ("How much is it?", "It costs $5.", "It costs five dollars."),
        ("What is 10 - 4?", "6", "six"),
        (
            "Wie viele hast du?",
            "Ich habe 3 \u00c4pfel und 1.500 Euro.",
            "Ich habe drei \u00c4pfel und eintausendf\u00fcnfhundert Euro.",
        ),
        ("Hm 3?", "7", "7"),  # its language is uncertain
        ("What is it?\r\nSay it.", "An\u00a0apple.", "An apple."),
    ],
)
def test_without_a_language_numbers_are_written_out_in_that_of_the_chat(question: str, answer: str, said: str) -> None:
    found = Filters().apply(TextChat((TextPair(question, answer),)), "here", Refusals())
    assert found and found.turns[0].answer == said


def test_a_set_is_made_with_its_refusals_listed(tmp_path: Path) -> None:
    turns = [GOOD, *REFUSED.values(), GOOD]
    rows = [{"instruction": turn.question, "input": "", "output": turn.answer} for turn in turns]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    filters = Filters(language="en", duplicates=False)
    text_sources.main(tmp_path / "a.json", "alpaca", tmp_path / "chats.jsonl", filters)
    lines = (tmp_path / "chats.jsonl").read_text(encoding="utf-8").splitlines()
    assert [parse_chat(line).turns for line in lines] == [(GOOD,), (GOOD,)]
    assert {row["reason"] for row in map(json.loads, (tmp_path / "chats.jsonl.refused.jsonl").open())} == set(REFUSED)
    listed = [json.loads(line) for line in (tmp_path / "chats.jsonl.refused.jsonl").read_text().splitlines()]
    assert [one["id"] for one in listed] == [f"{tmp_path / 'a.json'}:{i}" for i in range(2, len(turns))]
    text_sources.main([tmp_path / "a.json"] * 2, "alpaca", tmp_path / "chats.jsonl.gz", filters)
    assert len(gzip.decompress((tmp_path / "chats.jsonl.gz").read_bytes()).splitlines()) == 4


def test_a_chat_is_kept_once(tmp_path: Path, capsys) -> None:
    rows = [{"question": "What is it?", "answer": f"It is {what}."} for what in ("one", "1", "two", "one")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text_sources.main(tmp_path / "a.jsonl", "plain", tmp_path / "chats.jsonl", Filters(language="en"))
    assert len((tmp_path / "chats.jsonl").read_text().splitlines()) == 2
    assert f"2 refused (2 {TextReason.DUPLICATE})" in capsys.readouterr().out


def test_a_trial_reads_a_limited_number_of_chats(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"question": "q{i}", "answer": "a"}}\n' for i in range(9)))
    text_sources.main([tmp_path / "a.jsonl"] * 2, "plain", tmp_path / "out.jsonl", most=7)
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 7
    with pytest.raises(ValueError, match="--most is 0"):
        text_sources.main(tmp_path / "a.jsonl", "plain", tmp_path / "out.jsonl", most=0)


def test_refused_inputs_give_an_exit_code_and_filtered_ones_do_not(tmp_path: Path) -> None:
    rows = ['{"question": "How long?", "answer": "' + "so " * 36 + '"}', '{"question": "What?", "answer": "That."}']
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    assert text_sources.main(tmp_path / "a.jsonl", "plain", tmp_path / "out.jsonl") == 0
    (tmp_path / "a.jsonl").write_text("\n".join([*rows, "no json"]))
    assert text_sources.main(tmp_path / "a.jsonl", "plain", tmp_path / "out.jsonl") == SOME_REFUSED
    refusals = Refusals()
    refusals.add("here", TextReason.URL)
    assert exit_code(refusals) == 0


def test_the_wrong_format_fails_and_leaves_the_existing_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"instruction": "a", "output": "b"}]))
    (tmp_path / "out.jsonl").write_text("of an earlier run")
    with pytest.raises(NothingKept, match=f"a.json as 'sharegpt'.*1 refused .1 {TextReason.MISSING_FIELD}"):
        text_sources.main(tmp_path / "a.json", "sharegpt", tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "of an earlier run"
    assert "'conversations'" in (tmp_path / "out.jsonl.refused.jsonl").read_text()


def test_the_command_line_has_flat_options_and_one_line_errors(tmp_path: Path, capsys) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "How much?", "answer": "It costs $5."}\n')
    files = [str(tmp_path / "a.jsonl"), "plain", str(tmp_path / "out.jsonl")]
    text_sources.main.cli([*files, "--filters.language", "en", "--most", "3"])
    assert "five dollars" in (tmp_path / "out.jsonl").read_text()
    capsys.readouterr()
    for wrong in ([*files, "--filters.language", "english"], [files[0], "tales", files[2]], [*files, "--most", "0"]):
        with pytest.raises(SystemExit) as stopped:
            text_sources.main.cli(wrong)
        error = capsys.readouterr().err.strip().splitlines()
        assert stopped.value.code == 2 and error[-1].startswith("instruct-sources: ")


# --- damaged and foreign files


def test_a_false_or_cut_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "false.jsonl.gz").write_text('{"question": "a", "answer": "b"}\n')
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    for name in ("false.jsonl.gz", "cut.parquet"):
        with refused(FileReason.DAMAGED, tmp_path / name):
            list(read_source(tmp_path / name, "plain", Refusals()))


def test_the_lines_before_the_damage_of_a_compressed_file_are_kept(tmp_path: Path) -> None:
    lines = "".join(f'{{"question": "q{i}", "answer": "{i**40}"}}\n' for i in range(2000))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(lines.encode())[:-3000])
    refusals = Refusals(rows=[])
    found = list(read_source(tmp_path / "cut.jsonl.gz", "plain", refusals))
    assert 100 < len(found) < 2000 and refusals.counts == {CommonReason.DAMAGED: 1}
    assert refusals.rows and refusals.rows[0].id == f"{tmp_path / 'cut.jsonl.gz'}:{len(found) + 1}"


MESSAGE = {"message_tree_id": "t", "role": "prompter", "text": "x"}
LOST = {
    "an id that is a list": ({"message_id": ["a"], "parent_id": None}, TextReason.WRONG_TYPE),
    "a parent that is a list": ({"message_id": "z", "parent_id": ["a"]}, TextReason.WRONG_TYPE),
    "no id": ({"parent_id": "a"}, TextReason.MISSING_FIELD),
    "its own parent": ({"message_id": "z", "parent_id": "z"}, TextReason.NO_PARENT),
    "a parent that is not there": ({"message_id": "z", "parent_id": "gone"}, TextReason.NO_PARENT),
    "a second message of an id": ({"message_id": "b", "parent_id": "a"}, TextReason.SAME_ID),
}


@pytest.mark.parametrize("kind", LOST)
def test_no_message_of_a_tree_is_lost_without_a_reason(tmp_path: Path, kind: str) -> None:
    fields, reason = LOST[kind]
    rows = [*FLAT[:-1], {**MESSAGE, **fields}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refusals = Refusals(rows=[])
    ((_, chat),) = read_source(tmp_path / "a.jsonl", "openassistant", refusals)
    assert [(turn.question, turn.answer) for turn in chat.turns] == TWO
    assert [(row.id, row.reason) for row in refusals.rows or ()] == [(f"{tmp_path / 'a.jsonl'}:{len(rows)}", reason)]


def test_messages_in_a_circle_and_below_a_lost_one_are_refused(tmp_path: Path) -> None:
    links = [("p", "q"), ("q", "p"), ("r", "gone"), ("s", "r")]
    rows = [*FLAT[:-1], *({**MESSAGE, "message_id": name, "parent_id": parent} for name, parent in links)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    refusals = Refusals()
    assert len(list(read_source(tmp_path / "a.json", "openassistant", refusals))) == 1
    assert refusals.counts == {TextReason.NO_PARENT: 4}


@pytest.mark.parametrize(
    "form, row",
    [
        ("ultrachat", {"data": "who am i"}),
        ("plain", {"turns": ["ab", "cd"]}),
        ("plain", {"turns": [["a", "b", "c"]]}),
        ("plain", {"question": "a", "answer": "b", "split": ["dev"]}),
    ],
)
def test_text_where_a_list_belongs_is_not_read_letter_by_letter(tmp_path: Path, form: str, row: dict) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    refusals = Refusals()
    assert not list(read_source(tmp_path / "a.jsonl", form, refusals))
    assert refusals.counts == {TextReason.WRONG_TYPE: 1}
