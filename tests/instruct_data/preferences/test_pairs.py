"""Pairs of what is understood and what is not: which candidates are chosen; the same bytes by any number of workers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from chat_server import chat_server
from tiny_run import CODEBOOK, FOREIGN, make_run, sentence, spoken, stage_config

from eval.judge import TRIES
from instruct_data.build.preference_sets import read_preferences
from instruct_data.build.records import write_conversations
from instruct_data.preferences import pairs, scoring
from instruct_data.preferences.config import Pairing
from instruct_data.preferences.drawing import PairDrawer
from instruct_data.preferences.scoring import Candidate, Scored
from instruct_data.preferences.spoken import ReadText, continuations, spoken_reply
from speechgpt.dialogue import Conversation, Message
from speechgpt.prompts import tts_prompt
from stages.config import Source
from stages.train import train
from units.codebook import CodebookMismatch
from units.dataset.unit_set import read_unit_set
from units.runtime.files.json_files import FileError

READ = Conversation((tts_prompt("red cat"), Message("assistant", ((1, 2),))), "tts", "read")
ANSWERED = Conversation(
    (Message("human", ((3, 4),)), Message("assistant", ("what", "red dog", (1, 2)))), "chain", "ask"
)
ODD = [
    Conversation((Message("human", ((3, 4),)), Message("assistant", ("what",))), "asr", "written"),
    Conversation((Message("human", ("hm",)), Message("assistant", ((1,),))), "tts", "no text"),
    Conversation((Message("human", ((3,),)),), "chat", "no reply"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A tiny model that has learned to read texts aloud and to answer, badly, and what it learned from."""
    import random

    run, draw = make_run(tmp_path_factory.mktemp("pairs")), random.Random(0)
    made = []
    for i in range(24):
        turns = (tts_prompt(sentence(draw)), Message("assistant", (spoken(draw)[:6],)))
        if i % 2:
            parts = (sentence(draw), sentence(draw), spoken(draw)[:6])
            turns = (Message("human", (spoken(draw),)), Message("assistant", parts))
        made.append(Conversation(turns, "chain" if i % 2 else "tts", f"c{i}"))
    write_conversations(run / "spoken.jsonl.gz", [*made, *ODD], CODEBOOK, 0)
    train(stage_config(run))
    data = [Source("spoken.jsonl.gz", hold_out=False), Source("data/chat.jsonl.gz", tasks=["asr"])]
    changes = {"stage": "stage3", "model": "stage1", "out": "stage3", "widen": None, "block_size": 128}
    train(stage_config(run, data=data, training={"max_steps": 120}, **changes))
    return run


HOW = {"longest": 40, "worst_chosen": 100.0, "margin": 0.05, "shard_size": 5, "batch": 8, "temperature": 1.5}


def draw(run: Path, out: str, workers: int = 1, **changes) -> bytes:
    pairs.main(run / "stage3", run / "spoken.jsonl.gz", run / out, workers=workers, how=Pairing(**{**HOW, **changes}))
    return (run / out).read_bytes() + (run / f"{out}.refused.jsonl").read_bytes()


def test_any_number_of_workers_gives_the_same_bytes(run, capsys) -> None:
    one = draw(run, "one.jsonl")
    found = list(read_preferences(run / "one.jsonl"))
    refused = [json.loads(line) for line in (run / "one.jsonl.refused.jsonl").read_text().splitlines()]
    assert len(found) + len(refused) == 24 and len(found) > 5 and {pair.task for pair in found} == {"chain", "tts"}
    for pair in found:
        assert pair.chosen.parts[:-1] == pair.rejected.parts[:-1] and pair.scores[1] - pair.scores[0] >= 0.05
    assert draw(run, "two.jsonl", workers=2) == one
    assert draw(run, "other.jsonl", seed=1) != one
    pairs.main(run / "stage3", run / "spoken.jsonl.gz", run / "one.jsonl", how=Pairing())
    assert "done already" in capsys.readouterr().out


def test_a_killed_run_goes_on_with_what_it_has(run, monkeypatch) -> None:
    whole, shards = draw(run, "whole.jsonl"), []

    def killed(by, work, made=pairs.draw_shard):
        if len(shards) == 2:
            raise KeyboardInterrupt
        shards.append(work[0])
        made(by, work)

    monkeypatch.setattr(pairs, "draw_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        draw(run, "killed.jsonl")
    assert not (run / "killed.jsonl").exists() and shards == [0, 1]
    monkeypatch.undo()
    with pytest.raises(ValueError, match="begun with other"):
        draw(run, "killed.jsonl", seed=1)
    assert draw(run, "killed.jsonl") == whole
    assert not (run / "killed.jsonl.parts").exists()


def test_ranks_share_the_shards(run, capsys) -> None:
    whole = draw(run, "alone.jsonl")
    how = Pairing(**HOW)
    for rank in (1, 0):
        pairs.main(run / "stage3", run / "spoken.jsonl.gz", run / "ranks.jsonl", workers=1, rank=rank, world=2, how=how)
    assert "left to other processes" in capsys.readouterr().out
    assert (run / "ranks.jsonl").read_bytes() + (run / "ranks.jsonl.refused.jsonl").read_bytes() == whole


def test_what_can_be_spoken_again() -> None:
    assert spoken_reply(READ).text == "red cat" and spoken_reply(ANSWERED).text == "red dog"
    assert [spoken_reply(one) for one in ODD] == [None, None, None]


@pytest.mark.parametrize(
    ("errors", "how", "found"),
    [
        ([0.5, 0.0, 0.0, 1.0], {}, (1, 3)),
        ([0.5, 0.25, 1.0, 1.0], {}, "not_understood"),
        ([0.5, 0.25, 1.0, 1.0], {"worst_chosen": 0.3}, (1, 2)),
        ([0.0, 0.0, 0.05], {}, "alike"),
        ([0.0], {}, "unfinished"),
        ([], {}, "unfinished"),
        ([0.5, 1.0, 0.0], {"recorded": True}, (2, 1)),
        ([0.5, 0.5, 1.0], {"recorded": True, "worst_chosen": 0.5}, "alike"),  # the recorded one is never rejected
        ([0.0, 0.5, 0.0], {"recorded": True}, (0, 1)),
    ],
)
def test_which_candidates_make_a_pair(run, errors, how, found, tmp_path) -> None:
    drawer = PairDrawer(run / "stage3", Pairing(**how), tmp_path / "cache")
    own = len(errors) - 1 if how.get("recorded") else -1
    candidates = [Scored(Candidate((i,), drawn=i != own), error) for i, error in enumerate(errors)]
    pair = drawer._pair(spoken_reply(ANSWERED), candidates)
    if isinstance(found, str):
        assert pair == found
        return
    best, worst = found
    assert (pair.chosen.parts, pair.rejected.parts) == (("what", "red dog", (best,)), ("what", "red dog", (worst,)))
    assert pair.scores == (errors[best], errors[worst]) and pair.messages == ANSWERED.messages[:1]


def candidates(count: int) -> list[tuple]:
    return [(spoken_reply(ANSWERED), Candidate((i,))) for i in range(count)]


def test_every_listener_counts(run, monkeypatch, tmp_path) -> None:
    """A candidate's error is the mean of the model's own and of the evaluation ASR's."""

    class Ear:
        name = "ear"

        def transcribe_all(self, wavs):
            return ["red", "red dog"]

        def comparable(self, texts):
            return list(texts)

    scorer = PairDrawer(run / "stage3", Pairing(asr="pocketsphinx"), tmp_path / "cache").scorer
    monkeypatch.setattr(scoring, "open_asr", lambda *_: Ear())
    monkeypatch.setattr(scorer, "_transcripts", lambda units: ["red dog", "no idea"])
    scorer.gpt.__dict__["vocoder"] = type("Deaf", (), {"decode_batch": staticmethod(lambda some: some)})
    assert [one.error for one in scorer.scores(candidates(2))] == [0.25, 0.5]


def test_the_sound_counts_where_words_are_equal(run, monkeypatch, tmp_path) -> None:
    """DNSMOS of 5 adds nothing, of 1 the whole weight; a misunderstood candidate is never chosen for its sound."""
    drawer = PairDrawer(run / "stage3", Pairing(dnsmos=0.4), tmp_path / "cache")
    drawer.scorer.__dict__["dnsmos"] = type("Ear", (), {"scores": staticmethod(lambda wav: {"overall": wav})})
    monkeypatch.setattr(drawer.scorer, "_transcripts", lambda units: ["red dog"] * 2 + ["no idea"])
    monkeypatch.setattr(drawer.scorer, "_wavs", lambda units: [1.0, 3.0, 5.0])
    found = drawer.scorer.scores(candidates(3))
    assert [(one.error, one.poor) for one in found] == [(0.0, 0.4), (0.0, 0.2), (1.0, 0.0)]
    pair = drawer._pair(spoken_reply(ANSWERED), found[:2])
    assert (pair.chosen.parts[-1], pair.rejected.parts[-1], pair.scores) == ((1,), (0,), (0.2, 0.4))
    assert drawer._pair(spoken_reply(ANSWERED), [found[2], Scored(Candidate((9,)), 2.0)]) == "not_understood"


def test_a_prompt_without_room_is_listed(run, tmp_path) -> None:
    drawer = PairDrawer(run / "stage3", Pairing(**{**HOW, "longest": 100}), tmp_path / "cache")
    found, refused = drawer.pairs([spoken_reply(ANSWERED), spoken_reply(READ)], 0)
    assert not found and [one.reason for one in refused] == ["long_prompt", "long_prompt"]


@pytest.mark.parametrize(
    "given",
    [
        {"candidates": 1},
        {"temperature": 0},
        {"margin": 0},
        {"hearing": False},
        {"top_p": 0},
        {"limit": -1},
        {"batch": 0},
        {"beginning": 0},
        {"judge_weight": 0},
    ],
)
def test_bad_settings(given) -> None:
    with pytest.raises(ValueError, match=next(iter(given)).replace("_", "-")):
        Pairing(**given)


def test_units_of_another_codebook(run) -> None:
    write_conversations(run / "foreign.jsonl", [READ], FOREIGN, 0)
    with pytest.raises(CodebookMismatch, match="foreign"):
        pairs.main(run / "stage3", run / "foreign.jsonl", run / "mixed.jsonl")


def test_a_set_without_spoken_replies(run) -> None:
    with pytest.raises(ValueError, match="no conversation of the tasks asr that ends with a spoken reply"):
        draw(run, "none.jsonl", tasks=["asr"])
    assert not (run / "none.jsonl.parts").exists()


# --- texts that nobody has spoken


def test_texts_are_read_aloud(run) -> None:
    """Each line of a text file, as the model is asked to say it; what gives no pair is listed by its line."""
    texts = ["red cat", "blue dog", "green cat", "red dog"]
    (run / "to_read.txt").write_text("\n".join(texts[:2]) + "\n\n  green cat \nred dog\n")
    how = Pairing(**HOW)
    for workers, out in ((1, "one"), (2, "two")):
        pairs.main(run / "stage3", run / "to_read.txt", run / f"read_{out}.jsonl", workers=workers, how=how)
    made = list(read_preferences(run / "read_one.jsonl"))
    assert (run / "read_one.jsonl").read_bytes() == (run / "read_two.jsonl").read_bytes()
    refused = [json.loads(line) for line in (run / "read_one.jsonl.refused.jsonl").read_text().splitlines()]
    named = {f"to_read.txt:{number}": text for number, text in zip((1, 2, 4, 5), texts)}
    assert made and {pair.id for pair in made} | {row["item"] for row in refused} == set(named)
    for pair in made:
        assert pair.messages == (tts_prompt(named[pair.id]),) and pair.task == "tts"
        assert pair.chosen.parts[0] and pair.rejected.parts[0]


def test_a_text_is_read_as_the_set_that_holds_it(run, tmp_path) -> None:
    dialogue = PairDrawer(run / "stage3", Pairing(), tmp_path / "cache").gpt.dialogue
    assert ReadText("1", "red cat").prompt(dialogue) == spoken_reply(READ).prompt(dialogue)


@pytest.mark.parametrize("given", [{"recorded": True}, {"tasks": ["tts"]}])
def test_a_text_file_has_no_recordings_and_no_tasks(run, given) -> None:
    (run / "some.txt").write_text("red cat\n")
    with pytest.raises(ValueError, match="some.txt is a text file: it has no recordings and no tasks"):
        pairs.main(run / "stage3", run / "some.txt", run / "none.jsonl", how=Pairing(**given))


def test_a_text_file_without_text(run) -> None:
    (run / "blank.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="blank.txt holds no text; it has one on each line"):
        pairs.main(run / "stage3", run / "blank.txt", run / "none.jsonl")
    (run / "latin.txt").write_bytes("caf\u00e9\n".encode("latin-1"))
    with pytest.raises(FileError, match="not UTF-8"):
        pairs.main(run / "stage3", run / "latin.txt", run / "none.jsonl")
    assert not (run / "none.jsonl.parts").exists()


# --- a judge, and continuations


def test_a_judge_reads_what_was_heard(run, monkeypatch, tmp_path) -> None:
    """Its grades count where words are equal; what it gives no grade is no candidate; no request is made twice."""
    said = {"red dog": '{"content": 5, "style": 3}', "red cat": '{"content": 1, "style": 1}', "blue": "I cannot say"}
    with chat_server(
        lambda messages: said[messages[-1]["content"].partition("Reply: ")[2].partition("\n")[0]]
    ) as server:
        drawer = PairDrawer(run / "stage3", Pairing(judge=f"{server.url}#m", judge_weight=0.4), tmp_path / "cache")
        monkeypatch.setattr(drawer.scorer, "_transcripts", lambda units: ["red dog", "red cat", "blue"][: len(units)])
        found = drawer.scorer.scores(candidates(3))
        drawer.scorer.scores(candidates(2))
    assert [one and (one.error, round(one.poor, 4)) for one in found] == [(0.0, 0.1), (0.5, 0.4), None]
    asked = [request["messages"][-1]["content"] for request in server.requests]
    assert len(asked) == 2 + TRIES and "Question: what\n" in asked[0]
    assert drawer._pair(spoken_reply(ANSWERED), found).scores == (0.1, 0.9)
    assert drawer._pair(spoken_reply(ANSWERED), found[1:]) == "unjudged"


def test_utterances_are_continued_and_judged(run, capsys) -> None:
    """Both utterances of a pair begin with the recorded units; the judge reads the beginning and the whole."""

    def graded(messages) -> str:
        grade = 1 + len(messages[-1]["content"]) % 5
        return json.dumps({"content": grade, "style": grade})

    utterances = {record.id: record.units.ids for record in read_unit_set(run / "units/train")}
    how = Pairing(**{**HOW, "judge": None, "beginning": 5, "limit": 12})
    with chat_server(graded) as server:
        how = replace(how, judge=f"{server.url}#m")
        for out in ("one", "two"):
            pairs.main(run / "stage1", run / "units/train", run / f"continued_{out}.jsonl", workers=1, how=how)
    text = server.requests[0]["messages"][-1]["content"]
    assert "continues speech" in text and "Beginning: " in text
    made = list(read_preferences(run / "continued_one.jsonl"))
    assert made and (run / "continued_one.jsonl").read_bytes() == (run / "continued_two.jsonl").read_bytes()
    for pair in made:
        assert pair.messages == () and pair.task == "continuation"
        for one in (pair.chosen, pair.rejected):
            assert one.parts[0][:5] == tuple(utterances[pair.id][:5]) and len(one.parts[0]) > 5
    refused = [json.loads(line) for line in (run / "continued_one.jsonl.refused.jsonl").read_text().splitlines()]
    assert len(made) + len(refused) == 12


def test_what_can_be_continued(run) -> None:
    records = list(read_unit_set(run / "units/train"))
    longest = max(len(record.units.ids) for record in records)
    found = list(continuations(records, 5))
    assert [one.recorded for one in found] == [tuple(r.units.ids) for r in records if len(r.units.ids) > 5]
    assert all(len(one.beginning) == 5 and one.text is None for one in found)
    with pytest.raises(ValueError, match=f"no utterance of more than {longest} units; give --beginning"):
        how = Pairing(judge="http://localhost:1/v1#m", beginning=longest)
        pairs.main(run / "stage1", run / "units/train", run / "none.jsonl", how=how)
    with pytest.raises(ValueError, match="give --judge"):
        pairs.main(run / "stage1", run / "units/train", run / "none.jsonl")
