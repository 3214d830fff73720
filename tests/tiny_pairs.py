"""Pairs of replies for a stage of kind preference, of the tiny run (tests/tiny_run.py)."""

from __future__ import annotations

import random

from tiny_run import K, sentence, spoken

from instruct_data.build.preference_sets import Pair
from speechgpt.dialogue import Message
from speechgpt.prompts import tts_prompt


def pairs(count: int = 60, seed: int = 0) -> list[Pair]:
    """Answers in chains, read texts, and utterances of units that go on from the same ones."""
    draw, found = random.Random(seed), []
    for i in range(count):
        good, bad = (tuple(unit // 2 + half for unit in spoken(draw)) for half in (0, K // 2))
        kind = ("chain", "tts", "continuation")[i % 3]
        if kind == "continuation":
            begun = spoken(draw)
            replies = ((begun + good,), (begun + bad,))
            asked: tuple[Message, ...] = ()
        else:
            texts = (sentence(draw), sentence(draw)) if kind == "chain" else ()
            replies = ((*texts, good), (*texts, bad))
            asked = (Message("human", (spoken(draw),)) if kind == "chain" else tts_prompt(sentence(draw)),)
        chosen, rejected = (Message("assistant", parts) for parts in replies)
        found.append(Pair(asked, chosen, rejected, kind, f"p{i}", (0.0, 0.5)))
    return found
