"""Conversations for tests: a codebook, and a strategy of hypothesis that draws them."""

from __future__ import annotations

from hypothesis import strategies as st
from tiny_parts import K

from speechgpt.dialogue import Conversation, Message, Speech
from units.codebook import Codebook

CODEBOOK = Codebook("tiny", "mfcc", 0, K, 50.0, "none", "0123abcd")


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


units = st.lists(st.integers(0, K - 1), max_size=8).map(tuple)


seconds = st.floats(0.0, 100.0)


speech = st.builds(
    Speech,
    st.sampled_from(["wav/q1.wav", "/recordings/ü.flac"]),
    seconds,
    st.none() | seconds.filter(bool),
    st.none() | units,
)


replies = st.one_of(
    st.tuples(text),
    st.tuples(units),
    st.tuples(speech),
    st.tuples(text, text),
    st.tuples(text, units | speech),
    st.tuples(text, text, units | speech),
)


turns = st.tuples(
    st.lists(st.one_of(text, units, speech), min_size=1, max_size=3).map(lambda parts: Message("human", tuple(parts))),
    replies.map(lambda parts: Message("assistant", parts)),
)


conversations = st.builds(
    lambda rounds, task, name: Conversation(tuple(message for turn in rounds for message in turn), task, name),
    st.lists(turns, min_size=1, max_size=3),
    text,
    text,
)
