"""instruct-describe: its figures are those of the sets, and inputs that occur in two splits are found and named."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from tiny_conversations import CODEBOOK, K
from tiny_spoken_set import VOICE, build, corpus, text_set

from instruct_data.build.records import write_conversations
from instruct_data.build.splits import Splits
from instruct_data.describe import report
from instruct_data.describe.description import Durations, find_sets
from instruct_data.describe.description import describe as describe_sets
from speechgpt.dialogue import INPUT_FOLLOWS, Conversation, Message, Part, Speech
from units.codebook import Codebook, CodebookMismatch
from units.dataset.unit_set import read_unit_set


def asr(name: str, units: Part, text: str = "good day") -> Conversation:
    return Conversation(
        (Message("human", (f"Write. {INPUT_FOLLOWS}", units)), Message("assistant", (text,))), "asr", name
    )


def tts(name: str, text: str, units: tuple[int, ...]) -> Conversation:
    return Conversation(
        (Message("human", (f"Say. {INPUT_FOLLOWS} {text}",)), Message("assistant", (units,))), "tts", name
    )


def chain(name: str, units: tuple[int, ...], answer: tuple[int, ...]) -> Conversation:
    return Conversation((Message("human", (units,)), Message("assistant", (f"why {name}", "b", answer))), "chain", name)


def chat(name: str, question: str) -> Conversation:
    return Conversation((Message("human", (question,)), Message("assistant", ("yes",))), "chat", name)


def folder_of(folder: Path, **sets: list[Conversation]) -> Path:
    for name, conversations in sets.items():
        write_conversations(folder / f"{name}.jsonl.gz", conversations, CODEBOOK, 0)
    return folder


def test_the_toy_world_in_splits_has_no_leak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    units, pairs = corpus(tmp_path / "units"), text_set(tmp_path / "pairs.jsonl")
    for by in ("id", "text"):
        build(units, pairs, VOICE, tmp_path / by, splits=Splits(0.2, 0.2, by=by), chat_ratio=0.2)
        assert report.main(tmp_path / by, [units]) == 0
        printed = capsys.readouterr().out
        assert "no utterance and no sentence occurs in two splits" in printed
        assert "refused for cross_modal: " in printed and re.search("1 no.text", printed)
        assert re.search(r"asr +seconds +0\.1 ", printed)


LEAKS = {
    "an utterance of two prompts": ([asr("1", (1, 2))], [asr("2", (1, 2), "other")], "1 utterances"),
    "an utterance of a prompt and a reply": ([asr("1", (1, 2))], [tts("2", "hello", (1, 2))], "1 utterances"),
    "a question of a chain": ([chain("1", (1, 2), (3,))], [asr("2", (1, 2))], "1 utterances"),
    "a sentence to read": ([tts("1", "hello", (1,))], [tts("2", "hello", (2,))], "1 sentences"),
    "a question typed and spoken": ([chat("1", "why 2")], [chain("2", (5,), (3,))], "1 sentences"),
    "a question spoken and typed": ([chain("1", (5,), (3,))], [chat("2", "why 1")], "1 sentences"),
    "a typed question": ([chat("1", "how are you")], [chat("2", "how are you")], "1 sentences"),
}


@pytest.mark.parametrize("kind", LEAKS)
def test_an_input_in_two_splits_is_found_and_ends_with_exit_code_1(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train, dev, leak = LEAKS[kind]
    folder = folder_of(tmp_path, some=[*train, asr("x", (7,))], some_dev=[*dev, asr("y", (8,))])
    with pytest.raises(SystemExit) as stopped:
        report.main.cli([str(folder)])
    assert stopped.value.code == report.LEAKAGE == 1
    printed = capsys.readouterr().out
    assert f"LEAK: {leak} occur in train and in dev" in printed
    assert "some.jsonl.gz: 1 and in some_dev.jsonl.gz: 2" in printed
    assert "Some inputs occur in two splits" in (folder / "describe.html").read_text()


def test_spoken_answers_and_transcripts_may_occur_in_two_splits(tmp_path: Path) -> None:
    train = [chain("1", (1, 2), (3,)), asr("2", (4,), "same words"), tts("3", "hello", (9,))]
    dev = [chain("4", (5, 2), (3,)), asr("5", (6,), "same words"), chat("6", "hello")]
    assert report.main(folder_of(tmp_path, a=train, a_dev=dev)) == 0


def test_the_figures_are_those_of_the_set(tmp_path: Path) -> None:
    found = describe_sets(
        find_sets(folder_of(tmp_path, a=[asr("1", (1, 1, 2)), asr("2", (1, 1, 2))], b=[chat("3", "hello there")]))[0]
    )
    assert (found.total, found.duplicates, found.leaks) == (3, 1, [])
    assert found.sets == {"a.jsonl.gz": {"asr": 2}, "b.jsonl.gz": {"chat": 1}}
    assert found.used is not None and found.used.tolist() == [0, 4, 2] + [0] * (K - 3)
    assert list(found.lengths["asr"].units) == [3, 3] and list(found.lengths["chat"].words) == [3]
    assert not found.lengths["asr"].seconds and not found.lengths["asr"].tokens
    assert [c.id for c in found.examples["asr"]] == ["1", "2"]


def test_seconds_are_those_of_the_unit_set(tmp_path: Path) -> None:
    unit_set = read_unit_set(corpus(tmp_path))
    seconds = Durations([unit_set])
    assert all(seconds(record.units.ids) == pytest.approx(0.1) for record in unit_set)
    assert seconds((9, 9, 9)) is None


def test_the_page_shows_tokens_and_can_be_played(tmp_path: Path, model_folder: Path, mfcc_encoder) -> None:
    write_conversations(
        tmp_path / "a.jsonl", [asr("<1>", (1, 2, 3)), chain("2", (4, 2), (3,))], mfcc_encoder.codebook, 0
    )
    report.main(tmp_path / "a.jsonl", model=model_folder)
    page = (tmp_path / "describe.html").read_text()
    assert page.count("<audio") == 3 and page.count("<img") == 2
    assert "<td>tokens</td>" in page and "asr: &lt;1&gt;" in page
    assert "<1>" not in page and ".turn {" in page


def test_the_page_shows_speech_by_file_and_segment(tmp_path: Path) -> None:
    prompts = [Speech("wav/<q1>.wav", 0.5, 1.5, (1, 2)), Speech("wav/q2.wav"), Speech("wav/q3.wav", 2.0)]
    asked = [Conversation((Message("human", (p,)), Message("assistant", ("b",))), "asr", p.audio) for p in prompts]
    write_conversations(tmp_path / "a.jsonl", asked, CODEBOOK, 0)
    assert report.main(tmp_path / "a.jsonl", examples=3) == 0
    page = (tmp_path / "describe.html").read_text()
    assert "<code>wav/&lt;q1&gt;.wav, 0.50 s to 2.00 s</code>" in page and "2 units: 1 2" in page
    assert "<code>wav/q2.wav</code>" in page and "<code>wav/q3.wav, from 2.00 s</code>" in page
    found = describe_sets(find_sets(tmp_path / "a.jsonl")[0])
    assert list(found.lengths["asr"].seconds) == [1.5] and list(found.lengths["asr"].units) == [2, 0, 0]


def test_a_segment_in_two_splits_is_a_leak_without_units(tmp_path: Path) -> None:
    def conversation(name: str, start: float) -> Conversation:
        return asr(name, Speech("wav/q.wav", start, 1.0), name)

    write_conversations(tmp_path / "a.jsonl", [conversation("1", 0.0), conversation("2", 1.0)], None, 0)
    write_conversations(tmp_path / "a_test.jsonl", [conversation("3", 1.0), conversation("4", 2.0)], None, 0)
    (leak,) = describe_sets(find_sets(tmp_path)[0]).leaks
    assert (leak.kind, leak.splits, leak.count) == ("utterances", ("train", "test"), 1)
    assert leak.examples == ("a.jsonl: 2", "a_test.jsonl: 3")
    assert report.main(tmp_path) == report.LEAKAGE


def test_a_negative_number_of_examples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--examples is -1"):
        report.main(tmp_path, examples=-1)


def test_sets_of_two_codebooks_are_refused(tmp_path: Path) -> None:
    write_conversations(tmp_path / "a.jsonl", [asr("1", (1,))], CODEBOOK, 0)
    write_conversations(
        tmp_path / "b.jsonl", [asr("1", (1,))], Codebook("other", "mfcc", 0, K, 50.0, "none", "ffff"), 0
    )
    with pytest.raises(CodebookMismatch):
        report.main(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds none"):
        report.main(tmp_path.joinpath("empty"))


@pytest.mark.parametrize("library", ["jinja2", "matplotlib.figure"])
def test_a_missing_library_is_an_error_that_names_the_extra(
    tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_conversations(tmp_path / "a.jsonl", [asr("1", (1,))], CODEBOOK, 0)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=r"speechgpt-trainer\[data\]"):
        report.main(tmp_path)
    assert not (tmp_path / "describe.html").exists()
