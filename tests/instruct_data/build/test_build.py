"""Sets built part by part: the same bytes for any number of workers and after any kill; nothing is in two splits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_conversations import CODEBOOK, K
from tiny_spoken_set import NUMBERS, VOICE, build, corpus, text_set

from instruct_data.build import set_builder
from instruct_data.build.chain import PAPER, Exchange, asked, exchange_messages
from instruct_data.build.config import INSTRUCTIONS, TASKS, BuildConfig, ChainConfig, UnitSource
from instruct_data.build.cross_modal import CrossModalPart
from instruct_data.build.records import read_conversations
from instruct_data.build.splits import Splits, copies, drawn
from instruct_data.describe import report
from instruct_data.text.chats import ChatError, TextChat, TextPair, chat_line, parse_chat
from speechgpt.dialogue import INPUT_FOLLOWS, Conversation, Message, Reply, Speech
from units.codebook import Codebook, CodebookMismatch, Units
from units.corpus.manifest import has_word
from units.dataset.unit_set import UnitRecord, read_unit_set, write_unit_set
from units.runtime.pool import Workers
from units.runtime.refusals import Refusals, RefusedError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("made")
    return corpus(folder / "units"), text_set(folder / "pairs.jsonl")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def conversations(folder: Path, name: str) -> list[Conversation]:
    return list(read_conversations(folder / f"{name}.jsonl.gz"))


KINDS = dict.fromkeys(TASKS, 1.0)
CHAIN = ChainConfig(KINDS, "paper", halves=True)
SETTINGS = {"splits": Splits(0.2, 0.2, by="text"), "chat_ratio": 0.5, "chain": CHAIN, "seed": 3}


# --- the same bytes


def test_any_number_of_workers_gives_the_same_bytes(made, tmp_path: Path) -> None:
    build(*made, VOICE, tmp_path / "one", **SETTINGS, workers=1)
    build(*made, VOICE, tmp_path / "two", **SETTINGS, workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert {"text.jsonl.gz", "chain_dev.jsonl.gz", "cross_modal_test.jsonl.gz", "build.json"} <= set(
        files(tmp_path / "one")
    )
    build(*made, VOICE, tmp_path / "other", **{**SETTINGS, "seed": 4})
    assert files(tmp_path / "one") != files(tmp_path / "other")


def test_a_build_that_fails_goes_on_with_the_parts_it_has(
    made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(*made, VOICE, tmp_path / "whole", **SETTINGS)
    whole, calls = CrossModalPart.conversations, []

    def failing(part: CrossModalPart, refusals):
        calls.append((part.task, part.shard))
        if len(calls) == 4:
            raise KeyboardInterrupt
        yield from whole(part, refusals)

    monkeypatch.setattr(CrossModalPart, "conversations", failing)
    with pytest.raises(KeyboardInterrupt):
        build(*made, VOICE, tmp_path / "resumed", **SETTINGS)
    assert not (tmp_path / "resumed" / "cross_modal.jsonl.gz").exists()
    build(*made, VOICE, tmp_path / "resumed", **SETTINGS)
    assert len(calls) == len(set(calls)) + 1  # none but the one that failed was built twice
    assert files(tmp_path / "whole") == files(tmp_path / "resumed")


def test_parts_whose_plan_is_gone_are_not_resumed(made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(*made, VOICE, tmp_path / "whole", seed=2)
    finish = set_builder.Build.finish
    monkeypatch.setattr(set_builder.Build, "finish", lambda self: None)
    build(*made, VOICE, tmp_path / "out", seed=1)
    for plan in (tmp_path / "out" / ".parts").glob("*/*/plan"):
        plan.unlink()  # as a kill may leave it while the parts are thrown away
    monkeypatch.setattr(set_builder.Build, "finish", finish)
    build(*made, VOICE, tmp_path / "out", seed=2)
    assert files(tmp_path / "whole") == files(tmp_path / "out")


def test_parts_of_other_settings_or_input_are_not_resumed(
    made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    units, pairs = corpus(tmp_path / "units"), text_set(tmp_path / "pairs.jsonl")
    monkeypatch.setattr(set_builder.Build, "finish", lambda self: None)  # the parts stay, as after a kill
    build(units, pairs, VOICE, tmp_path / "out", seed=1)
    first = (tmp_path / "out" / "cross_modal.jsonl.gz").read_bytes()
    build(units, pairs, VOICE, tmp_path / "out", seed=2)
    assert (tmp_path / "out" / "cross_modal.jsonl.gz").read_bytes() != first
    corpus(tmp_path / "units", shard_size=7)
    build(units, pairs, VOICE, tmp_path / "out", seed=1)
    again = conversations(tmp_path / "out", "cross_modal")
    assert again and len({c.id for c in again}) == len(again)
    pairs.write_text("".join(chat_line(TextChat((TextPair(f"what is {n}", "it is forty one"),))) for n in NUMBERS))
    build(units, pairs, VOICE, tmp_path / "out", seed=1)
    assert {c.messages[1].parts[1] for c in conversations(tmp_path / "out", "chain")} == {"it is forty one"}


@pytest.mark.slow
def test_a_killed_build_goes_on_to_the_same_bytes(made, tmp_path: Path) -> None:
    build(*made, VOICE, tmp_path / "whole", seed=3)
    program = (
        "from pathlib import Path; import sys, time; from instruct_data.build import config, cross_modal, sets\n"
        "inner = cross_modal.CrossModalPart.conversations\n"
        "def slow(part, refusals):\n    time.sleep(0.5)\n    yield from inner(part, refusals)\n"
        "cross_modal.CrossModalPart.conversations = slow\n"
        "paths = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4])\n"
        "sets.main(*paths, config.BuildConfig(seed=3))"
    )
    arguments = [str(made[0]), str(made[1]), VOICE, str(tmp_path / "killed")]
    running = subprocess.Popen([sys.executable, "-c", program, *arguments], cwd=Path(__file__).parents[3])
    done = tmp_path / "killed" / ".parts" / "cross_modal" / "asr"
    until = time.monotonic() + 120
    while len(list(done.glob("*.json"))) < 2 and running.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "killed" / "build.json").exists() and len(list(done.glob("*.json"))) >= 2
    build(*made, VOICE, tmp_path / "killed", seed=3)
    assert files(tmp_path / "whole") == files(tmp_path / "killed")


def test_a_process_that_is_killed_ends_the_work_with_an_error() -> None:
    with Workers(2) as pool, pytest.raises(RuntimeError, match="one of 2 processes was killed.*fewer processes"):
        list(pool.run(os._exit, [3, 3]))


# --- what is in them


def test_sides_by_text_share_no_sentence(made, tmp_path: Path) -> None:
    build(*made, VOICE, tmp_path / "out", **SETTINGS)
    facts = json.loads((tmp_path / "out" / "build.json").read_text())
    assert set(facts["sides"].values()) == {"train", "dev", "test"} and set(facts["counts"]) == set(facts["sides"])
    said: dict[str, set[str]] = {"train": set(), "dev": set(), "test": set()}
    for name, split in facts["sides"].items():
        for conversation in conversations(tmp_path / "out", name):
            if conversation.task == "asr":
                said[split].add(conversation.messages[1].parts[0])
            elif conversation.task == "tts":
                said[split].add(conversation.messages[0].parts[0].split(f"{INPUT_FOLLOWS} ")[1])
    assert all(said.values())
    assert not said["train"] & said["dev"] | said["train"] & said["test"] | said["dev"] & said["test"]


def questions(folder: Path) -> dict[str, set[str]]:
    """The questions in the typed sets and in the chain, by split."""
    found: dict[str, set[str]] = {}
    for name, split in json.loads((folder / "build.json").read_text())["sides"].items():
        turns = [c.messages[:2] for c in conversations(folder, name) if c.task not in ("asr", "tts")]
        found.setdefault(split, set()).update(filter(None, (asked(*turn) for turn in turns)))
    return found


@pytest.mark.parametrize("by", ["id", "text"])
@pytest.mark.parametrize("wording", ["released", "paper"])
def test_a_question_has_one_side_typed_and_spoken_by_anybody(made, tmp_path: Path, by: str, wording: str) -> None:
    splits = Splits(0.2, 0.2, by, held_out_speakers=["tone:mid"])
    build(*made, VOICE, tmp_path, splits=splits, chain=ChainConfig(KINDS, wording), chat_ratio=0.3)
    by_split = questions(tmp_path)
    assert all(by_split.values()) and set.union(*by_split.values()) == {f"what is {number}" for number in NUMBERS}
    assert sum(map(len, by_split.values())) == len(NUMBERS)
    refused = json.loads((tmp_path / "build.json").read_text())["refused"]["chain"]
    assert refused["held_out_speaker"] > 0


def test_questions_stand_where_the_text_set_says(made, tmp_path: Path) -> None:
    rows = [TextPair(f"what is {n}", f"it is {n}", "test" if i % 4 == 0 else "train") for i, n in enumerate(NUMBERS)]
    chat = TextChat((TextPair("well", "it is twenty two"), TextPair("what is twenty two", "it is twenty two")))
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(map(chat_line, [chat, *(TextChat((row,)) for row in rows)])))
    build(made[0], pairs, VOICE, tmp_path / "out")
    assert questions(tmp_path / "out") == {
        "train": {"well", *(row.question for row in rows if row.split == "train")},
        "test": {row.question for row in rows if row.split == "test"},
    }
    heard = {c.messages[1].parts[0] for c in conversations(tmp_path / "out", "cross_modal") if c.task == "asr"}
    assert not heard & questions(tmp_path / "out")["test"]
    build(made[0], pairs, VOICE, tmp_path / "all", splits=Splits(named=False))
    assert set(questions(tmp_path / "all")) == {"train"}
    pairs.write_text(chat_line(TextChat((TextPair("a", "b", "valid"),))))
    with pytest.raises(ValueError, match="'a' has the split 'valid'; it is one of"):
        build(made[0], pairs, VOICE, tmp_path / "none")


def test_one_utterance_stands_on_one_side_and_held_out_speakers_on_none_of_trainings(made, tmp_path: Path) -> None:
    splits = Splits(0.3, 0.0, held_out_speakers=["tone:mid"])
    build(*made, VOICE, tmp_path / "out", splits=splits)
    ids: dict[str, set[str]] = {}
    for split in ("", "_dev", "_test"):
        ids[split] = {c.id.split("-", 1)[1] for c in conversations(tmp_path / "out", f"cross_modal{split}")}
    assert all(ids.values())
    assert not ids[""] & ids["_dev"] | ids[""] & ids["_test"] | ids["_dev"] & ids["_test"]
    heard = [c for c in conversations(tmp_path / "out", "chain") if c.task == "chain"]
    assert heard and len(ids["_test"]) == len(NUMBERS) + 1  # every utterance of tone:mid


def test_weights_chats_and_refusals_are_counted(made, tmp_path: Path) -> None:
    build([UnitSource(made[0], 2.0)], made[1], VOICE, tmp_path / "out", chat_ratio=0.5, compress=False)
    found = list(read_conversations(tmp_path / "out" / "cross_modal.jsonl"))
    counts = Counter(c.task for c in found)
    spoken = len(NUMBERS) * 3 - 1
    assert (counts["asr"], counts["tts"]) == (2 * (spoken + 1), 2 * (len(NUMBERS) - 1))
    assert abs(counts["chat"] - 0.5 * (counts["asr"] + counts["tts"])) <= 12
    assert len({c.id for c in found}) == len(found)
    descriptions = {c.id: c.messages[0].parts[0] for c in found if c.task == "asr"}
    assert any(descriptions[name] != descriptions[f"{name}~2"] for name in descriptions if "~" not in name)
    refused = json.loads((tmp_path / "out" / "build.json").read_text())["refused"]
    assert refused["cross_modal"] == {"no_text": 1}
    assert refused["chain"]["not_a_question"] == 2
    assert refused["chain"]["no_spoken_answer"] == 2
    assert refused["chain"]["no_common_speaker"] == 1
    assert not (tmp_path / "out" / ".parts").exists()


WORDLESS = ["...", "\U0001f600", "???", "\u2014", "\u0301", "\u200b", " "]


def test_texts_without_a_word_are_in_no_conversation(tmp_path: Path) -> None:
    """An answer, a transcript or a question of punctuation or emoji alone, in the text set and in the unit set."""
    pairs = [{"question": "what is it", "answer": text} for text in WORDLESS]
    pairs += [{"question": text, "answer": "it is a cat"} for text in WORDLESS]
    pairs += [{"turns": [["who is it", "a cat"], ["why", text]]} for text in WORDLESS]
    pairs += [{"question": "how is it", "answer": "it is a cat"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    texts = ["how is it", "what is it", "it is a cat", *WORDLESS]
    records = [
        UnitRecord(f"{speaker}-{i}", Units((i % K, 3, 5), None, CODEBOOK), 1280, text, speaker)
        for speaker in (VOICE, "tone:high")
        for i, text in enumerate(texts)
    ]
    write_unit_set(tmp_path / "units", records, CODEBOOK)
    kinds = ChainConfig(KINDS)
    build(
        tmp_path / "units", tmp_path / "pairs.jsonl", VOICE, tmp_path / "out", chat_ratio=1.0, tts_of="all", chain=kinds
    )
    found = [c for name in ("text", "cross_modal", "chain") for c in conversations(tmp_path / "out", name)]
    parts = [part for c in found for message in c.messages for part in message.parts if isinstance(part, str)]
    assert len(found) >= 9 and all(map(has_word, parts))
    assert Counter(c.task for c in found)["asr"] == 2 * 3
    refused = json.loads((tmp_path / "out" / "build.json").read_text())["refused"]
    assert refused["text"] == {"no_word": 3 * len(WORDLESS)}
    assert refused["cross_modal"] == {
        "no_word": 2 * (len(WORDLESS) - 1) + 3 * len(WORDLESS),  # utterances, and text chats
        "no_text": 2,
    }


def test_several_unit_sets_are_one_codebooks(made, tmp_path: Path) -> None:
    other = corpus(tmp_path / "other", Codebook("other", "mfcc", 0, K, 50.0, "none", "ffff"))
    with pytest.raises(CodebookMismatch, match="other"):
        build([UnitSource(made[0]), UnitSource(other)], made[1], VOICE, tmp_path / "out")
    build([UnitSource(made[0]), UnitSource(made[0], 0.5)], made[1], VOICE, tmp_path / "out")
    asr = [c.id for c in conversations(tmp_path / "out", "cross_modal") if c.task == "asr"]
    assert len(set(asr)) < len(asr) < 2 * len(set(asr))


def test_another_language_brings_its_own_descriptions(made, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "de"
    folder.mkdir()
    (folder / "asr.txt").write_text("Schreib auf, was du hörst.\n", encoding="utf-8")
    (folder / "tts.txt").write_text("Lies das bitte vor.\n", encoding="utf-8")
    (folder / "repeat.txt").write_text("Sag es noch einmal.\n", encoding="utf-8")
    build(*made, VOICE, tmp_path / "out", instructions=folder)
    said = capsys.readouterr().out
    assert (
        "warning" in said and "asr.txt has no line 'Please transcribe this speech.'" in said and "tts.txt has" in said
    )
    assert not set_builder.untaught(INSTRUCTIONS / "toy")
    told = {c.messages[0].parts[0] for c in conversations(tmp_path / "out", "cross_modal") if c.task == "asr"}
    assert told == {f"Schreib auf, was du hörst. {INPUT_FOLLOWS}"}
    (folder / "repeat.txt").write_text("Noch einmal bitte.\n", encoding="utf-8")
    build(*made, VOICE, tmp_path / "out", instructions=folder)
    told = {c.messages[0].parts[0] for c in conversations(tmp_path / "out", "text") if c.task == "repeat"}
    assert all(words.startswith("Noch einmal bitte.") for words in told)
    with pytest.raises(FileNotFoundError, match="no task descriptions for 'tts'"):
        list(CrossModalPart(made[0], 0, 1, "tts", 1, Splits(), instructions=tmp_path).conversations(Refusals()))


def test_the_chain_has_four_kinds_and_several_turns(made, tmp_path: Path) -> None:
    build(*made, VOICE, tmp_path / "out", chain=ChainConfig(KINDS), seed=1)
    found = conversations(tmp_path / "out", "chain")
    assert {c.task for c in found} == set(TASKS.values())
    for conversation in found:
        human, assistant = conversation.messages[:2]
        reply = Reply.from_parts(assistant.parts)
        spoken_to = not isinstance(human.parts[0], str)
        assert (reply.transcript is not None) == spoken_to == ("text_to" not in conversation.task)
        assert (reply.units is not None) == (conversation.task in ("chain", "chain_text_to_speech"))
        assert (reply.text or "").startswith("it is ")
    turns = {c.id: len(c.messages) // 2 for c in found if c.id.startswith("turns-")}
    assert turns == {f"turns-{len(NUMBERS)}": 2, f"turns-{len(NUMBERS) + 1}": 3, f"turns-{len(NUMBERS) + 2}": 2}
    assert next(c for c in found if c.id == f"turns-{len(NUMBERS) + 2}").task == TASKS["text_to_text"]  # nobody asks it


def test_halves_of_chains_hear_what_asks_nothing_and_answer_every_question(made, tmp_path: Path) -> None:
    build(*made, VOICE, tmp_path / "out", chain=ChainConfig(halves=True), seed=1)
    heard = {record.units.ids: record for record in read_unit_set(made[0]) if record.speaker != VOICE and record.text}
    found = conversations(tmp_path / "out", "chain_halves")
    first = [c for c in found if c.task == "chain_transcript"]
    second = [c for c in found if c.task == "chain_answer"]
    (transcript,) = first  # of the one utterance that asks nothing
    assert transcript.messages[1] == Message("assistant", ("the sky is blue",), "transcript")
    assert heard[transcript.messages[0].parts[0]].text == "the sky is blue"
    assert len(second) == len(NUMBERS) + 3  # the first turns of all chats
    for conversation in second:
        asked, said = conversation.messages
        assert asked.parts[0] in heard and said.learned == "answer"
        assert said.parts[1] == said.parts[0].replace("what is", "it is")
    other = [c for c in second if heard[c.messages[0].parts[0]].text != c.messages[1].parts[0]]
    assert len(other) > len(second) / 2  # the sound is that of any utterance


def test_the_sound_before_an_answer_is_of_its_split(made, tmp_path: Path) -> None:
    splits = Splits(0.2, 0.2, by="text")
    build(*made, VOICE, tmp_path / "out", chain=ChainConfig(halves=True), splits=splits)
    said = {record.units.ids: record.text for record in read_unit_set(made[0]) if record.speaker != VOICE}
    for split, name in (("train", "chain_halves"), ("dev", "chain_halves_dev"), ("test", "chain_halves_test")):
        found = [c for c in conversations(tmp_path / "out", name) if c.task == "chain_answer"]
        assert found
        for conversation in found:
            asked, replied = conversation.messages
            assert splits.split_of("", said[asked.parts[0]]) == splits.split_of("", replied.parts[0]) == split


def test_an_answer_without_any_sound_of_its_split_is_refused(tmp_path: Path) -> None:
    alone = [UnitRecord("a", Units((1, 2), (1, 1), CODEBOOK), 1600, "it is two", VOICE)]
    write_unit_set(tmp_path / "units", alone, CODEBOOK)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(chat_line(TextChat((TextPair("what is two", "it is two"),))))
    build(tmp_path / "units", pairs, VOICE, tmp_path / "out", chain=ChainConfig({"text_to_text": 1}, halves=True))
    assert conversations(tmp_path / "out", "chain_halves") == []
    (refused,) = (tmp_path / "out" / "chain_halves.refused.jsonl").read_text().splitlines()
    assert json.loads(refused)["reason"] == "no_spoken_question" and "what is two" in refused


def test_what_nobody_asks_aloud_is_typed(made, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    silent = [TextPair("who asks", "it is twenty one"), TextPair("and why", "nobody says so")]
    chats = [TextChat((pair,)) for pair in (*silent, TextPair("what is twenty one", "it is twenty one"))]
    pairs.write_text("".join(map(chat_line, [*chats, TextChat(tuple(silent))])))
    for kinds, wanted in (
        ({"text_to_text": 1}, {"chain-u000", "chain-u001", "turns-0", "turns-1", "turns-3"}),
        ({"text_to_speech": 1}, {"chain-u000", "chain-u001", "turns-0"}),
        ({"speech_to_speech": 1}, {"chain-u000", "chain-u001"}),
    ):
        build(made[0], pairs, VOICE, tmp_path / "out", chain=ChainConfig(kinds))
        assert {c.id for c in conversations(tmp_path / "out", "chain")} == wanted


def test_sounds_without_units_are_refused(tmp_path: Path) -> None:
    records = [
        UnitRecord(f"u{i}", Units(ids, (1,) * len(ids), CODEBOOK), 1600, text, speaker)
        for i, (ids, text, speaker) in enumerate(
            (((), "who", "tone:high"), ((1,), "who", "tone:mid"), ((), "me", VOICE), ((2,), "me", VOICE))
        )
    ]
    write_unit_set(tmp_path / "units", records, CODEBOOK)
    (tmp_path / "pairs.jsonl").write_text(chat_line(TextChat((TextPair("who", "me"),))))
    build(tmp_path / "units", tmp_path / "pairs.jsonl", VOICE, tmp_path / "out")
    assert [c.id for c in conversations(tmp_path / "out", "chain")] == ["chain-u1"]
    facts = json.loads((tmp_path / "out" / "build.json").read_text())
    assert facts["refused"] == {"cross_modal": {"no_units": 2}, "chain": {"no_units": 1}}
    (tmp_path / "pairs.jsonl").write_text("")
    build(tmp_path / "units", tmp_path / "pairs.jsonl", VOICE, tmp_path / "out", chat_ratio=0.5)
    assert not conversations(tmp_path / "out", "text")


def test_an_asr_corpus_is_enough_for_the_cross_modal_set(made, tmp_path: Path, capsys) -> None:
    build(made[0], out=tmp_path / "alone", splits=Splits(0.2), tts_of="all")
    facts = json.loads((tmp_path / "alone" / "build.json").read_text())
    assert set(facts["counts"]) == {"cross_modal", "cross_modal_dev"}
    both = {task: sum(facts["counts"][name][task] for name in facts["counts"]) for task in ("asr", "tts")}
    assert both == dict.fromkeys(("asr", "tts"), len(NUMBERS) * 3)
    build(made[0], out=tmp_path / "held", splits=Splits(0.0, 0.2, held_out_speakers=["tone:mid"]), tts_of="all")
    assert report.main(tmp_path / "held") == 0  # no sentence is read out in two splits
    refused = json.loads((tmp_path / "held" / "build.json").read_text())["refused"]["cross_modal"]
    assert 0 < refused["held_out_speaker"] < len(NUMBERS) + 1
    build(made[0], out=tmp_path / "heard")
    assert {c.task for c in conversations(tmp_path / "heard", "cross_modal")} == {"asr"}
    assert "no chain" not in capsys.readouterr().out
    build(*made, out=tmp_path / "typed", chain=ChainConfig({"speech_to_text": 1}))
    assert {c.task for c in conversations(tmp_path / "typed", "chain")} == {"chain_speech_to_text"}
    build(*made, out=tmp_path / "mute")
    assert "no chain is built: --voice says who answers" in capsys.readouterr().out
    assert not (tmp_path / "mute" / "chain.jsonl.gz").exists() and conversations(tmp_path / "mute", "text")


def test_a_later_question_of_a_chat_is_asked_in_its_chat_only(made, tmp_path: Path) -> None:
    chat = TextChat(
        (TextPair("what is twenty one", "it is twenty one"), TextPair("what is twenty two", "it is fifty one"))
    )
    again = TextPair("what is twenty one", "it is fifty two")
    for name, others in (("alone", []), ("beside", [TextPair("what is twenty two", "it is twenty two")])):
        pairs = tmp_path / f"{name}.jsonl"
        pairs.write_text("".join(map(chat_line, [chat, *(TextChat((pair,)) for pair in [*others, again])])))
        build(made[0], pairs, VOICE, tmp_path / name)
        found = conversations(tmp_path / name, "chain")
        alone = {tuple(c.messages[1].parts[:2]) for c in found if len(c.messages) == 2}
        assert alone == {(chat.turns[0].question, chat.turns[0].answer)} | {(p.question, p.answer) for p in others}
        assert [c.id for c in found if len(c.messages) == 4] == ["turns-0"]


@pytest.mark.parametrize("kind", TASKS)
def test_the_papers_words_stand_around_the_question(kind: str) -> None:
    exchange = Exchange("who are you?", "a model", (1, 2), (3,))
    human, assistant = exchange_messages(exchange, kind, "paper")
    assert str(human.parts[-1]).endswith(PAPER[kind])
    assert str(human.parts[0]).startswith(f"This is a {kind.split('_to_')[0]} instruction:")
    bare, same = exchange_messages(exchange, kind)
    assert bare.parts == (((1, 2),) if kind.startswith("speech") else ("who are you?",)) and same == assistant
    assert asked(human, assistant) == asked(bare, same) == exchange.question
    with pytest.raises(RefusedError, match="needs units"):
        exchange_messages(Exchange("a", "b", spoken=(1,) if kind == "speech_to_speech" else None), "speech_to_speech")


def test_options_that_cannot_be_are_refused(made, tmp_path: Path) -> None:
    for options, reason in (
        ({"kinds": {"sing": 1}}, "unknown kinds"),
        ({"wording": "loud"}, "--chain.wording"),
        ({"kinds": {"text_to_text": 0}}, "needs a share above 0"),
    ):
        with pytest.raises(ValueError, match=reason):
            ChainConfig(**options)
    with pytest.raises(ValueError, match=r"held_out_speakers has \['tone:hihg'\]"):
        build(*made, VOICE, tmp_path / "out", splits=Splits(held_out_speakers=["tone:hihg"]))
    for wrong in ({"chat_ratio": -0.5}, {"least_of_a_family": 0}, {"most_of_a_family": 0}, {"workers": 0}):
        with pytest.raises(ValueError, match=r"it must be at least [01]"):
            BuildConfig(**wrong)
    with pytest.raises(ValueError, match="--weight is -1.0; it must be at least 0"):
        UnitSource(made[0], -1.0)
    for wrong in ({"dev": 0.6, "test": 0.5}, {"dev": -0.1}, {"by": "mood"}):
        with pytest.raises(ValueError, match="--splits"):
            Splits(**wrong)


def test_draws_are_even_and_of_the_key_alone() -> None:
    at = [drawn("x", i) for i in range(4000)]
    assert abs(sum(at) / len(at) - 0.5) < 0.02 and drawn("x", 7) == at[7]
    assert abs(sum(copies(1.3, i) for i in range(4000)) / 4000 - 1.3) < 0.03
    by_split = Counter(Splits(0.1, 0.2, by="id").split_of(f"u{i}", "same") for i in range(4000))
    assert abs(by_split["dev"] - 400) < 60 and abs(by_split["test"] - 800) < 80


@pytest.mark.parametrize(
    "line", ['{"turns": []}', '{"turns": [["a"]]}', '{"turns": [["a", ""]]}', '{"turns": 3}', '{"turns": [["a", 1]]}']
)
def test_a_bad_chat_is_refused(line: str) -> None:
    with pytest.raises(ChatError):
        parse_chat(line)


@pytest.mark.parametrize("turns", [1, 3])
def test_a_chat_is_read_as_it_was_written(turns: int) -> None:
    chat = TextChat(tuple(TextPair(f'a "{i}"\n', "ü\u2028") for i in range(turns)))
    assert parse_chat(chat_line(chat)) == chat
    family = TextChat((TextPair("a", "b", "dev", "sums"),))
    assert parse_chat(chat_line(family)) == family


def test_a_line_that_is_no_chat_is_counted_and_the_rest_is_built(made, tmp_path: Path) -> None:
    good = made[1].read_bytes()
    bad = b'{"question": "a"}\n{\n\xff\n{"question": "a", "answer": "\\ud83d"}\n{"turns": [["a"]]}\n'
    (tmp_path / "pairs.jsonl").write_bytes(bad + good)
    build(made[0], tmp_path / "pairs.jsonl", VOICE, tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "build.json").read_text())
    assert facts["counts"]["text"]["chat"] == len(NUMBERS) + 3
    bad_lines = {"no_turn": 1, "not_json": 1, "not_utf8": 1, "lone_surrogate": 1, "wrong_type": 1}
    assert facts["refused"]["text"] == bad_lines
    for name, reasons in facts["refused"].items():
        listed = [json.loads(line) for line in (tmp_path / "out" / f"{name}.refused.jsonl").read_text().splitlines()]
        assert Counter(row["reason"] for row in listed) == {
            reason: count for reason, count in reasons.items() if reason != "not_a_question"
        }
    assert {row["id"] for row in listed} >= {f"{tmp_path / 'pairs.jsonl'}:{number}" for number in (1, 2, 3, 4, 5)}
    assert facts["counts"]["chain"]


@pytest.mark.parametrize("form", ["units", "audio", "both"])
def test_what_the_human_says_is_written_as_units_or_as_audio(tmp_path: Path, form: str) -> None:
    """Replies stay units. Audio in the run folder is written relative to the sets, other audio as it is."""
    outside = tmp_path / "elsewhere" / "q.wav"

    def spoken(name: str, text: str, speaker: str, unit: int, audio: Path | None) -> UnitRecord:
        start, duration = (1.5, 2.0) if audio == outside else (0.0, None)
        return UnitRecord(
            name, Units((unit,), (1,), CODEBOOK), 1600, text, speaker, audio=audio, start=start, duration=duration
        )

    records = [
        spoken("q0", "what is one", "tone:high", 0, tmp_path / "run" / "wav" / "q0.wav"),
        spoken("q1", "what is two", "tone:high", 1, outside),
        spoken("q2", "what is three", "tone:high", 2, None),
        spoken("a0", "it is one", VOICE, 3, tmp_path / "run" / "wav" / "a0.wav"),
        spoken("a1", "it is two", VOICE, 4, outside),
        spoken("a2", "it is three", VOICE, 5, None),
    ]
    write_unit_set(tmp_path / "run" / "units", records, CODEBOOK)
    chats = [TextChat((TextPair(f"what is {n}", f"it is {n}"),)) for n in ("one", "two", "three")]
    (tmp_path / "chats.jsonl").write_text("".join(map(chat_line, chats)))
    out = tmp_path / "run" / "data"
    build(tmp_path / "run" / "units", tmp_path / "chats.jsonl", VOICE, out, speech=form, workers=1)

    def expected(unit: int, speech: Speech | None) -> object:
        if form == "units" or speech is None:
            return (unit,)
        return replace(speech, units=(unit,)) if form == "both" else speech

    asked = {"asr-q0": expected(0, Speech("../wav/q0.wav")), "asr-q1": expected(1, Speech(str(outside), 1.5, 2.0))}
    found = {c.id: c for c in conversations(out, "cross_modal")}
    for name, part in asked.items():
        assert found[name].messages[0].parts[-1] == part
        chain = {c.id: c for c in conversations(out, "chain")}[name.replace("asr", "chain")]
        assert chain.messages[0].parts == (part,)
        assert chain.messages[1].parts[-1] == ((3,) if name == "asr-q0" else (4,))
    assert found["tts-a0"].messages[1].parts == ((3,),)
    refused = json.loads((out / "build.json").read_text())["refused"]
    assert ("asr-q2" in found) == (form == "units")
    counts = {name: refused.get(name, {}).get("no_audio", 0) for name in ("chain", "cross_modal")}
    assert counts == ({"chain": 0, "cross_modal": 0} if form == "units" else {"chain": 1, "cross_modal": 2})  # q2, a2
    if form != "units":
        opened = read_conversations(out / "chain.jsonl.gz")
        parts = {c.id: c.messages[0].parts[0] for c in opened}
        assert opened.audio_path(parts["chain-q0"]).resolve() == (tmp_path / "run" / "wav" / "q0.wav").resolve()
