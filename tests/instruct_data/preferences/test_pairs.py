"""Pairs of what is understood and what is not: which candidates are chosen; the same bytes by any number of workers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_run import CODEBOOK, FOREIGN, make_run, sentence, spoken, stage_config

from instruct_data.build.preference_sets import read_preferences
from instruct_data.build.records import write_conversations
from instruct_data.preferences import drawing, pairs
from instruct_data.preferences.config import Pairing
from instruct_data.preferences.drawing import PairDrawer, Scored, spoken_reply
from speechgpt.dialogue import Conversation, Message
from speechgpt.prompts import tts_prompt
from stages.config import Source
from stages.train import train
from units.codebook import CodebookMismatch

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
def test_which_candidates_make_a_pair(run, errors, how, found) -> None:
    drawer = PairDrawer(run / "stage3", Pairing(**how))
    pair = drawer._pair(spoken_reply(ANSWERED), [Scored((i,), error) for i, error in enumerate(errors)])
    if isinstance(found, str):
        assert pair == found
        return
    best, worst = found
    assert (pair.chosen.parts, pair.rejected.parts) == (("what", "red dog", (best,)), ("what", "red dog", (worst,)))
    assert pair.scores == (errors[best], errors[worst]) and pair.messages == ANSWERED.messages[:1]


def test_every_listener_counts(run, monkeypatch) -> None:
    """A candidate's error is the mean of the model's own and of the evaluation ASR's."""

    class Ear:
        name = "ear"

        def transcribe_all(self, wavs):
            return ["red", "red dog"]

        def comparable(self, texts):
            return list(texts)

    drawer = PairDrawer(run / "stage3", Pairing(asr="pocketsphinx"))
    monkeypatch.setattr(drawing, "open_asr", lambda *_: Ear())
    monkeypatch.setattr(drawer, "_transcripts", lambda units: ["red dog", "no idea"])
    drawer.gpt.__dict__["vocoder"] = type("Deaf", (), {"decode_batch": staticmethod(lambda some: some)})
    found = drawer._scored([((1,), "red dog"), ((2,), "red dog")])
    assert [one.error for one in found] == [0.25, 0.5]


def test_the_sound_counts_where_words_are_equal(run, monkeypatch) -> None:
    """DNSMOS of 5 adds nothing, of 1 the whole weight; a misunderstood candidate is never chosen for its sound."""
    drawer = PairDrawer(run / "stage3", Pairing(dnsmos=0.4))
    drawer.__dict__["dnsmos"] = type("Ear", (), {"scores": staticmethod(lambda wav: {"overall": wav})})
    monkeypatch.setattr(drawer, "_transcripts", lambda units: ["red dog"] * 2 + ["no idea"])
    monkeypatch.setattr(drawer, "_wavs", lambda units: [1.0, 3.0, 5.0])
    found = drawer._scored([((i,), "red dog") for i in range(3)])
    assert [(one.error, one.poor) for one in found] == [(0.0, 0.4), (0.0, 0.2), (1.0, 0.0)]
    pair = drawer._pair(spoken_reply(ANSWERED), found[:2])
    assert (pair.chosen.parts[-1], pair.rejected.parts[-1], pair.scores) == ((1,), (0,), (0.2, 0.4))
    assert drawer._pair(spoken_reply(ANSWERED), [found[2], Scored((9,), 2.0)]) == "not_understood"


def test_a_prompt_without_room_is_listed(run) -> None:
    drawer = PairDrawer(run / "stage3", Pairing(**{**HOW, "longest": 100}))
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
