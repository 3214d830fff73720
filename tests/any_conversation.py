"""Conversations of any text and units, drawn by hypothesis, and a parser for all their turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hypothesis import strategies as st
from tiny_parts import K

from speechgpt.dialogue import Conversation, Dialogue, Message, Part, Reply
from speechgpt.vocab import EOA, EOH, HUMAN, SPEECHGPT
from units.notation import EOSP, SOSP

TRICKS = [
    "", '"quoted"', "'", "a\nb", "\r\n", "\t", "<17>", "<3>", "[Human]", "[Human]: ", "<eoh>", "<eoa>",
    "[SpeechGPT]:", "[ta]", "[ua]", "<sosp><1><2><eosp>", "</s>", "<s>", "<eos>", ";", "; [ta] ",
    "\U0001f600\U0001f469\u200d\U0001f469\u200d\U0001f467", "\u05e9\u05dc\u05d5\u05dd",
    "\u0645\u0631\u062d\u0628\u0627", "\u202eback", "\ufeff", "\x00", "This is input:", "{question}", "\\n",
    "\u0301", "\u2028",
]  # fmt: skip


plain = st.text(st.characters(exclude_characters="\u2581", exclude_categories=["Cs"]), max_size=30)


texts = st.one_of(st.sampled_from(TRICKS), plain, st.lists(st.sampled_from([*TRICKS, "word"]), max_size=6).map("".join))


sounds = st.lists(st.integers(0, K - 1), max_size=10).map(tuple)


asked = st.one_of(st.tuples(texts), st.tuples(sounds), st.tuples(texts, sounds))


replies = st.one_of(
    st.tuples(texts),
    st.tuples(sounds),
    st.tuples(texts, texts),
    st.tuples(texts, sounds),
    st.tuples(texts, texts, sounds),
)


conversations = st.lists(st.tuples(asked, replies), min_size=1, max_size=3).map(
    lambda turns: Conversation(
        tuple(m for human, model in turns for m in (Message("human", human), Message("assistant", model)))
    )
)


def parsed(dialogue: Dialogue, ids: Sequence[int]) -> list[tuple[Part, ...]]:
    """The parts of every turn, read from the ids by their special tokens alone."""
    special = dialogue.vocab.special_id
    opening = dialogue.encode_text(":")
    turns: list[tuple[Part, ...]] = []
    rest = list(ids[ids.index(special(HUMAN)) :])
    while rest:
        word, end = (HUMAN, EOH) if len(turns) % 2 == 0 else (SPEECHGPT, EOA)
        assert rest[0] == special(word) and rest[1 : 1 + len(opening)] == opening
        stop = rest.index(special(end))
        body, rest = rest[1 + len(opening) : stop + 1], rest[stop + 1 :]
        turns.append(dialogue.parse_reply(body).parts() if word == SPEECHGPT else human_parts(dialogue, body[:-1]))
    return turns


def human_parts(dialogue: Dialogue, body: list[int]) -> tuple[Part, ...]:
    special = dialogue.vocab.special_id
    if special(SOSP) not in body:
        return (dialogue.decode_text(body),)
    start, stop = body.index(special(SOSP)), body.index(special(EOSP))
    assert stop == len(body) - 1
    sound = tuple(dialogue.vocab.decode(body[start:]))
    return (dialogue.decode_text(body[:start]), sound) if start else (sound,)


def without_ends(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Spaces at the ends of a text have no token."""
    return tuple(part.strip() if isinstance(part, str) else part for part in parts)


def check_read_back(conversation: Conversation, turns: list, kept: Callable[[str], str] = str) -> None:
    """Assert that turns equal those of a conversation. kept: a text as the tokenizer keeps it."""
    for found, message in zip(turns, conversation.messages, strict=True):
        said = tuple(kept(part) if isinstance(part, str) else part for part in without_ends(message.parts))
        if message.role == "human" and len(said) == 2 and said[0] == "":
            said = said[1:]  # an empty text before a sound has no token
        if message.role == "assistant":
            assert Reply.from_parts(without_ends(found)) == Reply.from_parts(said)
        else:
            assert without_ends(found) == said
