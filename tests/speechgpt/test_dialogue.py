"""The template: parsing is the inverse of rendering; text never becomes units or special tokens, nor units text."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference import DATA
from tiny_parts import K

from speechgpt.dialogue import Conversation, Dialogue, Message, NoUnitsError, Part, Reply, Speech
from speechgpt.vocab import (
    EOA,
    EOH,
    HUMAN,
    SPECIAL_TOKENS,
    SPEECHGPT,
    TA,
    TQ,
    UA,
    UnitVocab,
    VocabularyError,
    new_words,
)
from units.notation import EOSP, SOSP

LAYOUT = DATA / "speechgpt_layout"
TRICKS = [
    "", "<17>", "<3>", "[Human]", "[Human]: hi<eoh> [SpeechGPT]: ", "<eoh>", "<eoa>", "</s>", "<s>", "<unk>",
    "[ta]", "<sosp><1><2><eosp>", "a; [ta] b; [ua] ", ";", "a;", "a ;", ";;", "; ", "a\nb\n\nc", "\t",
    'she said "no"', "'", "😀👩‍👩‍👧", "שלום עולם", "مرحبا", "größe", "<0x41>", "\x00", "  two  spaces  ",
    "naïve “quotes”",
]  # fmt: skip
# sentencepiece writes a space as U+2581, so its tokenizers cannot keep the two apart
plain = st.text(st.characters(exclude_characters="\u2581", exclude_categories=["Cs"]), max_size=40)
texts = st.one_of(
    plain, st.sampled_from(TRICKS), st.builds("".join, st.lists(st.sampled_from(TRICKS + ["x"]), max_size=5))
)
units = st.lists(st.integers(0, K - 1), max_size=12).map(tuple)


def asked(*parts: Part) -> Message:
    return Message("human", parts)


def rendered_reply(dialogue: Dialogue, parts: tuple[Part, ...], train_on_prompt: bool = False) -> list[int]:
    """Ids after the prompt, as a model would write them."""
    question = asked("hear this", (1, 2))
    whole = dialogue.render(Conversation((question, Message("assistant", parts))), train_on_prompt)
    prompt = dialogue.prompt([question])
    assert whole.ids[: len(prompt)] == prompt
    return whole.ids[len(prompt) :]


# --- rendering and reading back


@settings(max_examples=150, deadline=None)
@given(
    parts=st.one_of(
        st.tuples(texts),
        st.tuples(units),
        st.tuples(texts, texts),
        st.tuples(texts, units),
        st.tuples(texts, texts, units),
    )
)
@example(parts=("", "", ()))
@example(parts=("a;", "b;", (1,)))
@example(parts=("; [ta] x", "; [ua] <sosp><1><eosp>"))
def test_a_reply_is_read_back(dialogue: Dialogue, parts: tuple[Part, ...]) -> None:
    said = dialogue.parse_reply(rendered_reply(dialogue, parts))
    expected = Reply.from_parts(parts)
    assert said.units == expected.units
    for found, meant in ((said.transcript, expected.transcript), (said.text, expected.text)):
        assert (found is None) == (meant is None)
        assert found is None or found.strip() == meant.strip()


@settings(max_examples=150, deadline=None)
@given(text=texts)
def test_text_is_never_a_unit_or_a_special_token(dialogue: Dialogue, text: str) -> None:
    ids = dialogue.encode_text(text)
    specials = set(dialogue.vocab.special_ids.values()) | set(dialogue.tokenizer.all_special_ids)
    assert not [token for token in ids if dialogue.vocab.is_unit(token) or token in specials]
    assert dialogue.decode_text(ids) == text.strip()


@settings(max_examples=60, deadline=None)
@given(text=texts, spoken=units)
def test_user_text_cannot_change_the_structure(dialogue: Dialogue, text: str, spoken: tuple[int, ...]) -> None:
    ids = dialogue.prompt([asked(text, spoken), Message("assistant", ("ok",)), asked(text)])
    special = dialogue.vocab.special_id
    structure = [token for token in ids if token in dialogue.vocab.special_ids.values()]
    assert structure == [special(word) for word in (HUMAN, SOSP, EOSP, EOH, SPEECHGPT, EOA, HUMAN, EOH, SPEECHGPT)]
    assert tuple(dialogue.vocab.decode(ids)) == spoken


@given(spoken=units)
def test_units_are_never_text(dialogue: Dialogue, spoken: tuple[int, ...]) -> None:
    body = dialogue.vocab.encode(spoken)
    assert not [token for token in body if token < dialogue.vocab.first_unit_id]
    assert dialogue.parse_reply(rendered_reply(dialogue, (spoken,))) == Reply(None, None, spoken)


def test_speech_is_rendered_as_its_units(dialogue: Dialogue) -> None:
    heard, said = Speech("q.wav", 0.0, 1.5, (1, 2)), Speech("a.wav", units=(3,))
    for parts, same in (((said,), ((3,),)), (("hi", said), ("hi", (3,))), (("who", "me", said), ("who", "me", (3,)))):
        spoken = Conversation((asked("Write.", heard), Message("assistant", parts)))
        units_alone = Conversation((asked("Write.", (1, 2)), Message("assistant", same)))
        assert dialogue.render(spoken) == dialogue.render(units_alone)
        assert Reply.from_parts(parts).parts() == parts


@pytest.mark.parametrize("role", ["human", "assistant"])
def test_speech_without_units_is_refused_by_a_system_that_reads_units(dialogue: Dialogue, role: str) -> None:
    recording = Speech("wav/q1.wav", 0.0, 1.5)
    messages = (
        asked(recording if role == "human" else "hi"),
        Message("assistant", ("ok", recording) if role == "assistant" else ("ok",)),
    )
    with pytest.raises(NoUnitsError, match="wav/q1.wav.*units-extract"):
        dialogue.render(Conversation(messages))


# --- the train mask


@pytest.mark.parametrize("parts", [("hi",), ((1, 2),), ("heard", "hi", (3,))])
def test_the_loss_covers_the_reply(dialogue: Dialogue, parts: tuple[Part, ...]) -> None:
    turns = (asked("one"), Message("assistant", parts), asked((1,)), Message("assistant", ("two",)))
    whole = dialogue.render(Conversation(turns))
    reply = rendered_reply(dialogue, parts)
    counted = [token for token, train in zip(whole.ids, whole.train) if train]
    assert counted == reply + rendered_reply(dialogue, ("two",))
    first = whole.train.index(True)
    assert whole.ids[:first] == dialogue.prompt(turns[:1])
    assert all(whole.train[first : first + len(reply)])


def test_train_on_prompt_counts_everything_but_the_prefix(dialogue: Dialogue) -> None:
    prefixed = Dialogue(dialogue.tokenizer, "You are an AI assistant.")
    whole = prefixed.render(Conversation((asked("one"), Message("assistant", ("two",)))), train_on_prompt=True)
    uncounted = whole.train.count(False)
    assert whole.train == [False] * uncounted + [True] * (len(whole.ids) - uncounted)
    assert whole.ids[:uncounted] == [prefixed.tokenizer.bos_token_id, *prefixed.encode_text("You are an AI assistant.")]


@pytest.mark.parametrize("train_on_prompt", [False, True])
def test_the_halves_of_a_chain_learn_what_a_whole_one_does(dialogue: Dialogue, train_on_prompt: bool) -> None:
    question = asked((1, 2))

    def counted(message: Message) -> tuple[list[int], list[int]]:
        whole = dialogue.render(Conversation((question, message)), train_on_prompt)
        prompt = 0 if not train_on_prompt else len(dialogue.prompt([question])) - 1  # all but the begin of sentence
        learned = [token for token, train in zip(whole.ids, whole.train) if train]
        return whole.ids, learned[prompt:]

    parts = ("heard", "said", (3,))
    chain, learned = counted(Message("assistant", parts))
    transcript, first = counted(Message("assistant", ("heard",), "transcript"))
    answer, second = counted(Message("assistant", parts, "answer"))
    assert first + second == learned and first[-1] == dialogue.vocab.special_id(TA)
    assert chain == answer and chain[: len(transcript)] == transcript


def test_constant_texts_are_encoded_once(dialogue: Dialogue, monkeypatch) -> None:
    prefixed = Dialogue(dialogue.tokenizer, "You are an AI assistant.")
    chat = Conversation((asked("one"), Message("assistant", ("heard", "said", (1, 2)))))
    first = prefixed.render(chat)
    encode, encoded = prefixed.encode_text, []
    monkeypatch.setattr(prefixed, "encode_text", lambda text: encoded.append(text) or encode(text))
    assert prefixed.render(chat) == first and encoded == ["one", "heard", "said"]


# --- conversations


def test_roles_alternate() -> None:
    human, assistant = asked("a"), Message("assistant", ("b",))
    Conversation((human, assistant, human))
    for messages in ((assistant,), (human, human), (human, assistant, assistant)):
        with pytest.raises(ValueError, match="roles alternate"):
            Conversation(messages)


@pytest.mark.parametrize(
    "role, parts, reason",
    [
        ("user", ("a",), "'human' or 'assistant'"),
        ("human", (), "has no parts"),
        ("assistant", ("a", "b", "c"), "this one is"),
        ("assistant", ((1,), "a"), "this one is units, text"),
        ("assistant", ((1,), (2,)), "this one is"),
    ],
)
def test_malformed_messages_are_refused(role: str, parts: tuple[Part, ...], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Message(role, parts)


@pytest.mark.parametrize(
    "role, parts, learned, reason",
    [
        ("human", ("a",), "answer", "only replies are learned"),
        ("assistant", ("a",), "question", "one of all, transcript, answer"),
        ("assistant", ("a", "b"), "transcript", "this message is text, text"),
        ("assistant", ((1,),), "transcript", "this message is units"),
        ("assistant", ("a", (1,)), "answer", "this message is text, units"),
    ],
)
def test_what_cannot_be_learned_is_refused(role: str, parts: tuple[Part, ...], learned: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Message(role, parts, learned)


def test_a_transcript_alone_ends_a_conversation() -> None:
    human, half = asked((1,)), Message("assistant", ("a",), "transcript")
    Conversation((human, half))
    with pytest.raises(ValueError, match="turn 1 breaks off"):
        Conversation((human, half, human))


def test_a_conversation_without_turns_is_refused() -> None:
    with pytest.raises(ValueError, match="no messages"):
        Conversation(())


# --- what upstream's data disagree on


def test_parsing_is_lenient(dialogue: Dialogue) -> None:
    encode, special, spoken = dialogue.encode_text, dialogue.vocab.special_id, dialogue.vocab.encode((3, 4))
    eos = dialogue.tokenizer.eos_token_id
    chain = [*encode("heard;"), special(TA), *encode("said;"), special(UA), *spoken]
    expected = Reply("heard", "said", (3, 4))
    assert dialogue.parse_reply([*chain, special(EOA)]) == expected
    assert dialogue.parse_reply([*chain, eos]) == expected  # another end
    assert dialogue.parse_reply(chain) == expected  # cut off at the end
    assert dialogue.parse_reply([special(TQ), *chain, special(EOA), *encode("more"), special(TA)]) == expected
    assert dialogue.parse_reply([special(TQ), *encode("heard;"), special(TA), *encode("said")]) == Reply(
        "heard", "said"
    )
    assert dialogue.parse_reply([]) == Reply(None, "", None)


def test_a_chain_that_was_cut_off_early_has_no_answer(dialogue: Dialogue) -> None:
    encode, special = dialogue.encode_text, dialogue.vocab.special_id
    assert dialogue.parse_reply(encode("what is two"), chained=True) == Reply("what is two", None, None)
    assert dialogue.parse_reply([*encode("heard;"), special(TA)], chained=True) == Reply("heard", "", None)
    whole = rendered_reply(dialogue, ("heard", "said", (3,)))
    for end in range(len(whole) + 1):
        cut = dialogue.parse_reply(whole[:end], chained=True)
        assert "heard".startswith(cut.transcript.removesuffix(";"))
        assert "said".startswith((cut.text or "").removesuffix(";"))


# --- the vocabulary


def test_the_vocabulary_is_read_from_the_tokenizer(dialogue: Dialogue) -> None:
    words = dialogue.tokenizer.get_vocab()
    vocab = UnitVocab.from_words(words)
    first = words["<0>"]
    assert (vocab.first_unit_id, vocab.size) == (first, K)
    assert [words[word] for word in new_words(K)] == list(range(first, first + K + len(SPECIAL_TOKENS)))


@given(spoken=st.lists(st.integers(0, K - 1)))
def test_decode_is_the_inverse_of_encode(dialogue: Dialogue, spoken: list[int]) -> None:
    ids = dialogue.vocab.encode(spoken)
    assert dialogue.vocab.decode(ids) == spoken
    assert dialogue.vocab.decode([5, *ids, 7]) == spoken


@pytest.mark.parametrize("unit", [-1, K])
def test_a_unit_out_of_range_is_refused(dialogue: Dialogue, unit: int) -> None:
    with pytest.raises(ValueError, match=f"units 0 to {K - 1}"):
        dialogue.vocab.encode([0, unit])


def test_units_that_are_not_one_block_are_refused() -> None:
    words = {word: 50 + i for i, word in enumerate(new_words(5))}
    assert UnitVocab.from_words(words).size == 5
    for change, reason in (
        ({"<3>": 99}, "<3> is token 99, but <0> is 50, so it must be 53"),
        ({"<3>": 54, "<4>": 53}, "one block in order"),
        ({SOSP: None}, "lacks <sosp>"),
        ({SOSP: None, EOSP: None}, "lacks <sosp> and <eosp>"),
        ({"<0>": None}, "has no units"),
        ({"<2>": None}, "<3> but not <2>"),  # a gap, not a codebook of two
    ):
        changed = {word: token for word, token in {**words, **change}.items() if token is not None}
        with pytest.raises(VocabularyError, match=reason):
            UnitVocab.from_words(changed)
    with pytest.raises(VocabularyError, match=r"has no \[ta\]"):
        UnitVocab.from_words({word: token for word, token in words.items() if word != TA}).special_id(TA)


def test_the_published_layout_is_read() -> None:
    expected = json.loads((LAYOUT / "expected.json").read_text())
    added = json.loads((LAYOUT / "cm" / "added_tokens.json").read_text())
    text_words = {f"text{i}": i for i in range(expected["text_vocab"])}
    vocab = UnitVocab.from_words(text_words | added)
    assert (vocab.first_unit_id, vocab.size) == (expected["token_ids"]["<0>"], 1000)
    assert {word: vocab.special_id(word) for word in (SOSP, EOSP, HUMAN, SPEECHGPT, EOH)} == {
        word: expected["token_ids"][word] for word in (SOSP, EOSP, HUMAN, SPEECHGPT, EOH)
    }
    assert not {EOA, TQ, TA, UA} & set(vocab.special_ids)
    assert vocab.encode((661, 987, 511)) == [1480, 1141, 1467, 991, 1481]  # ids of upstream's own tokenizer
