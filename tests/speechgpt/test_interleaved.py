"""Interleaved replies: the template and the grammar make the same, and nothing else; parsing is the inverse."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_parts import K
from transformers import AutoModelForCausalLM, PreTrainedModel

from speechgpt.dialogue import Conversation, Dialogue, Message, Reply
from speechgpt.generation.generate import generate
from speechgpt.generation.grammar import Grammar, grammar_of
from speechgpt.generation.interleaved_grammar import KnownTexts
from speechgpt.generation.shared import share
from speechgpt.interleaving import MOST, InterleavedReplies
from speechgpt.published.template import PublishedDialogue
from speechgpt.sampling import Sampling
from speechgpt.vocab import EOA, TA, TQ, UA
from units.notation import EOSP, SOSP

CPU = torch.device("cpu")
ROWS = 384  # of the output embedding of the tiny model
TRICKS = [
    "", ";", "a;", ";;", "a; b; c;", "[ta]", "[ua] <sosp><1><eosp>", "<17>", "<eoa>", "😀👩‍👩‍👧 été", "שלום עולם",
    "one two three four five six seven", "\x00", "  two  spaces  ",
]  # fmt: skip
plain = st.text(st.characters(exclude_characters="\u2581", exclude_categories=["Cs"]), max_size=40)
texts = st.one_of(plain, st.sampled_from(TRICKS))
units = st.lists(st.integers(0, K - 1), max_size=40).map(tuple)
hows = st.builds(InterleavedReplies, st.integers(1, 14), st.integers(1, 14))
QUESTION = Message("human", ((1, 2),))


def alternating(dialogue: Dialogue, how: InterleavedReplies) -> Dialogue:
    return Dialogue(dialogue.tokenizer, interleaving=how)


def reply_ids(dialogue: Dialogue, *parts: str | tuple[int, ...]) -> list[int]:
    whole = dialogue.render(Conversation((QUESTION, Message("assistant", parts))))
    return whole.ids[len(dialogue.prompt([QUESTION])) :]


def states_of(grammar: Grammar, ids: list[int], begin: int = 0) -> torch.Tensor | None:
    """The state after a sequence; None if one of its tokens is not allowed."""
    state = torch.tensor([begin])
    for token in ids:
        if not grammar.allowed(state)[0, token]:
            return None
        state = grammar.after(state, torch.tensor([token]))
    return state


def accepts(grammar: Grammar, dialogue: Dialogue, ids: list[int], begin: int = 0) -> bool:
    """Whether a sequence is a whole reply."""
    end = dialogue.vocab.special_id(EOA)
    return ids.count(end) == 1 and ids[-1] == end and states_of(grammar, ids, begin) is not None


def made_of_its_parts(dialogue: Dialogue, ids: list[int]) -> list[int] | None:
    """What the template would make of the transcript, the text tokens and the units of a sequence.

    None if it lacks a part: a reply to a spoken question has a transcript, a text and units.
    """
    special = dialogue.vocab.special_id
    if special(TA) not in ids or dialogue.interleaving is None:
        return None
    start = ids[: ids.index(special(TA))]
    written = start[start[:1] == [special(TQ)] :]
    if any(token in dialogue.vocab.special_ids.values() or dialogue.vocab.is_unit(token) for token in written):
        return None
    text, spoken = dialogue.answer_tokens(ids), dialogue.vocab.decode(ids)
    if not (start and text and spoken):
        return None
    made = list(start)
    for written, said in dialogue.interleaving.stretches(text, spoken):
        made += [special(TA), *written, special(UA), *dialogue.vocab.encode(said)]
    return [*made, special(EOA)]


# --- the template


def test_full_stretches_alternate_and_the_last_one_has_the_rest(dialogue: Dialogue) -> None:
    woven = alternating(dialogue, InterleavedReplies(2, 3))
    text = woven.encode_text("one two three") + woven.encode_text(";")
    assert len(text) > 4
    special = woven.vocab.special_id

    def stretch(written: list[int], spoken: tuple[int, ...]) -> list[int]:
        return [special(TA), *written, special(UA), *woven.vocab.encode(spoken)]

    start, end = woven.encode_text("heard") + woven.encode_text(";"), [special(EOA)]
    long, few, fewest = tuple(range(12)) * 20, (1, 2, 3, 4, 5), (1, 2, 3)
    count = -(-len(text) // 2)
    expected = [stretch(text[2 * i : 2 * i + 2], long[3 * i : 3 * i + 3]) for i in range(count - 1)]
    expected += [stretch(text[2 * count - 2 :], long[3 * count - 3 :])]  # the text ends early, and units go on alone
    assert reply_ids(woven, "heard", "one two three", long) == start + sum(expected, []) + end
    two = stretch(text[:2], (1, 2, 3)) + stretch(text[2:], (4, 5))  # longer in text: all of it before the rest
    assert reply_ids(woven, "heard", "one two three", few) == start + two + end
    assert reply_ids(woven, "heard", "one two three", fewest) == start + stretch(text, fewest) + end
    assert reply_ids(woven, "heard", "", long) == start + stretch(woven.encode_text(";"), long) + end
    assert reply_ids(woven, "one", few)[:1] == [special(TA)]  # without a transcript


@settings(max_examples=200, deadline=None)
@given(how=hows, parts=st.one_of(st.tuples(texts, texts, units), st.tuples(texts, units)))
@example(how=InterleavedReplies(1, 1), parts=("", "", ()))
@example(how=InterleavedReplies(1, 1), parts=("a;", "b;", (1,)))
@example(how=InterleavedReplies(3, 2), parts=("😀", "😀👩‍👩‍👧 été" * 3, (1, 2, 3) * 9))
def test_an_interleaved_reply_is_read_back(dialogue: Dialogue, how: InterleavedReplies, parts: tuple) -> None:
    woven, meant = alternating(dialogue, how), Reply.from_parts(parts)
    ids = reply_ids(woven, *parts)
    for reader in (woven, dialogue):  # a reply says by itself that it is interleaved
        found = reader.parse_reply(ids)
        assert found.units == meant.units and (found.transcript is None) == (meant.transcript is None)
        assert (found.text, found.transcript or "") == (meant.text.strip(), (meant.transcript or "").strip())
    again = Message("assistant", woven.parse_reply(ids).parts())
    assert woven.render(Conversation((QUESTION, again))).ids[-len(ids) :] == ids
    for end in range(len(ids)):  # cut off anywhere, it has a beginning of each
        cut = woven.parse_reply(ids[:end], chained=True)
        assert (cut.units or ()) == (meant.units or ())[: len(cut.units or ())]


@settings(max_examples=60, deadline=None)
@given(how=hows, parts=st.one_of(st.tuples(texts), st.tuples(units), st.tuples(texts, texts)))
def test_replies_of_one_kind_are_not_interleaved(dialogue: Dialogue, how: InterleavedReplies, parts: tuple) -> None:
    assert reply_ids(alternating(dialogue, how), *parts) == reply_ids(dialogue, *parts)


@settings(max_examples=60, deadline=None)
@given(text=texts, spoken=units)
def test_a_text_of_one_stretch_is_the_chain(dialogue: Dialogue, text: str, spoken: tuple[int, ...]) -> None:
    woven = alternating(dialogue, InterleavedReplies(MOST, 1))
    assert reply_ids(woven, "heard", text, spoken) == reply_ids(dialogue, "heard", text, spoken)


def test_the_loss_covers_whole_interleaved_replies(dialogue: Dialogue) -> None:
    woven = alternating(dialogue, InterleavedReplies(2, 3))
    said = ("heard", "one two three four", (1, 2, 3, 4, 5, 6, 7))
    turns = (QUESTION, Message("assistant", said), Message("human", ("and",)), Message("assistant", ("two",)))
    whole = woven.render(Conversation(turns))
    counted = [token for token, train in zip(whole.ids, whole.train) if train]
    assert counted == reply_ids(woven, *said) + reply_ids(woven, "two")
    assert woven.prompt(turns[:3])[: len(woven.prompt(turns[:1]))] == woven.prompt(turns[:1])
    assert reply_ids(woven, *said) == woven.prompt(turns[:3])[len(woven.prompt(turns[:1])) :][: len(counted) - 2]


# --- the grammar


@settings(max_examples=120, deadline=None)
@given(how=hows, transcript=texts, text=texts, spoken=units.filter(bool))
@example(how=InterleavedReplies(1, 1), transcript="", text="", spoken=(1,))
def test_the_grammar_allows_what_the_template_makes(
    dialogue: Dialogue, how: InterleavedReplies, transcript: str, text: str, spoken: tuple[int, ...]
) -> None:
    woven = alternating(dialogue, how)
    ids = reply_ids(woven, transcript, text, spoken)
    grammar = grammar_of(woven, "interleaved", ROWS, CPU)
    assert accepts(grammar, woven, ids) and accepts(grammar, woven, [woven.vocab.special_id(TQ), *ids])
    known = Grammar(woven, KnownTexts(((5, 6), tuple(woven.answer_tokens(ids)))), ROWS, CPU)
    at = ids.index(woven.vocab.special_id(TA))
    assert accepts(known, woven, ids[at + 1 :], known.begins(2)[1])


@settings(max_examples=150, deadline=None)
@given(how=st.builds(InterleavedReplies, st.integers(1, 4), st.integers(1, 4)), seed=st.integers(0, 2**32))
def test_the_grammar_allows_nothing_else(dialogue: Dialogue, how: InterleavedReplies, seed: int) -> None:
    woven, draw = alternating(dialogue, how), random.Random(seed)
    special, unit = woven.vocab.special_id, woven.vocab.first_unit_id
    alphabet = [*woven.encode_text("a b;"), unit, unit + 1, *map(special, (SOSP, EOSP, TA, UA, EOA, TQ))]
    grammar = grammar_of(woven, "interleaved", ROWS, CPU)
    walked, state = list[int](), torch.zeros(1, dtype=torch.long)
    while not walked or walked[-1] != special(EOA):  # any way through the grammar is what the template makes
        walked.append(draw.choice([token for token in alphabet if grammar.allowed(state)[0, token]]))
        state = grammar.after(state, torch.tensor(walked[-1:]))
    assert made_of_its_parts(woven, walked) == walked
    for _ in range(12):  # a token more, less, or in another place: allowed only if the template makes that
        changed, at = list(walked), draw.randrange(len(walked))
        match draw.randrange(4):
            case 0:
                del changed[at]
            case 1:
                changed.insert(at, draw.choice(alphabet))
            case 2:
                changed[at] = draw.choice(alphabet)
            case 3:
                changed.insert(draw.randrange(len(changed)), changed.pop(at))
        assert accepts(grammar, woven, changed) == (made_of_its_parts(woven, changed) == changed), changed


@settings(max_examples=80, deadline=None)
@given(
    how=st.builds(InterleavedReplies, st.integers(1, 4), st.integers(1, 4)),
    said=st.lists(st.lists(st.sampled_from("a b c".split()), min_size=1, max_size=9).map(" ".join), min_size=1),
    seed=st.integers(0, 2**32),
)
def test_known_texts_are_said_and_nothing_else(
    dialogue: Dialogue, how: InterleavedReplies, said: list[str], seed: int
) -> None:
    woven, draw = alternating(dialogue, how), random.Random(seed)
    special, unit = woven.vocab.special_id, woven.vocab.first_unit_id
    wanted = [tuple(woven.encode_text(text) + woven.encode_text(";")) for text in said]
    grammar = Grammar(woven, KnownTexts(tuple(wanted)), ROWS, CPU)
    assert len(grammar.begins(len(said))) == len(said)
    for text, begin in zip(wanted, grammar.begins(len(said))):
        walked, state = list[int](), torch.tensor([begin])
        while not walked or walked[-1] != special(EOA):
            allowed = grammar.allowed(state)[0].nonzero()[:, 0].tolist()
            texts_allowed = [
                token for token in allowed if token < unit and token not in woven.vocab.special_ids.values()
            ]
            assert len(texts_allowed) <= 1
            walked.append(draw.choice([token for token in allowed if token <= unit or not woven.vocab.is_unit(token)]))
            state = grammar.after(state, torch.tensor(walked[-1:]))
        whole = [*woven.encode_text("heard;"), special(TA), *walked]
        assert tuple(woven.answer_tokens(whole)) == text
        assert made_of_its_parts(woven, whole) == whole


# --- drawing


@pytest.fixture(scope="module")
def model(widened: Path, dialogue: Dialogue) -> PreTrainedModel:
    """A random model with likelier special tokens, so that its replies have several stretches, and end."""
    model = AutoModelForCausalLM.from_pretrained(widened).eval()
    liking = torch.zeros(model.get_output_embeddings().weight.shape[0])
    liking[[dialogue.vocab.special_id(word) for word in (TA, UA, EOSP)]] = torch.tensor([8.0, 12.0, 4.0])
    model.get_output_embeddings().register_forward_hook(lambda module, given, logits: logits + liking)
    return model


@pytest.fixture(scope="module")
def woven(dialogue: Dialogue) -> Dialogue:
    return alternating(dialogue, InterleavedReplies(1, 2))


def test_a_random_model_draws_interleaved_replies(model: PreTrainedModel, woven: Dialogue) -> None:
    assert ROWS == model.get_output_embeddings().weight.shape[0] > len(woven.tokenizer)
    prompts = [woven.prompt([Message("human", ((unit,) * (unit + 1),))]) for unit in range(6)]
    several = 0
    for seed in range(6):
        for reply in generate(model, woven, prompts, "interleaved", Sampling(1.0, seed=seed, max_new_tokens=200)):
            if woven.ended(reply):
                assert made_of_its_parts(woven, reply) == reply
                several += reply.count(woven.vocab.special_id(TA)) > 1
    assert several > 2
    greedy = Sampling(max_new_tokens=60)
    alone = [generate(model, woven, [prompt], "interleaved", greedy)[0] for prompt in prompts]
    assert generate(model, woven, prompts, "interleaved", greedy) == alone


def test_a_random_model_says_known_texts(widened: Path, model: PreTrainedModel, woven: Dialogue) -> None:
    said = [tuple(woven.encode_text(text)) for text in ("one two three;", "is it;", ";", "what is two plus two;")]
    prompts = [[*woven.prompt([QUESTION]), *woven.encode_text("heard"), woven.vocab.special_id(TA)]] * len(said)
    sampling = Sampling(1.0, seed=2, max_new_tokens=200)
    replies = generate(model, woven, prompts, KnownTexts(tuple(said)), sampling)
    assert [tuple(woven.answer_tokens([prompts[0][-1], *ids])) for ids in replies] == said
    assert all(map(woven.ended, replies))
    greedy = Sampling(max_new_tokens=60)
    together = generate(model, woven, prompts, KnownTexts(tuple(said)), greedy)
    for row, ids in enumerate(together):
        assert generate(model, woven, prompts[:1], KnownTexts(tuple(said)).of([row]), greedy) == [ids]
    share(model, 256)
    assert generate(model, woven, prompts, KnownTexts(tuple(said)), sampling) == replies


# --- settings


@pytest.mark.parametrize(
    "setting, reason",
    [
        ({"text": 0}, "interleave-replies.text is 0; it must be at least 1"),
        ({"units": -3}, "interleave-replies.units is -3"),
        ({"units": MOST + 1}, f"at most {MOST}"),
        ({"text": 1.5}, "whole number"),
        ({"units": True}, "whole number"),
    ],
)
def test_invalid_settings_are_refused(setting: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        InterleavedReplies(**setting)
    with pytest.raises(ValueError, match=f"^here: .*{reason}"):
        InterleavedReplies.from_record({**InterleavedReplies().record(), **setting}, "here")


@pytest.mark.parametrize("record", [[], 3, {}, {"text": 1}, {"text": 1, "units": 2, "more": 3}])
def test_malformed_records_are_refused(record: object) -> None:
    with pytest.raises(ValueError, match="model/speechgpt.json: interleave_replies is .* text and units"):
        InterleavedReplies.from_record(record, "model/speechgpt.json")


def test_a_record_is_read_back() -> None:
    how = InterleavedReplies(5, 9)
    assert InterleavedReplies.from_record(how.record(), "here") == how


def test_forms_need_a_dialogue_that_is_interleaved(dialogue: Dialogue) -> None:
    for form in ("interleaved", KnownTexts(((1,),))):
        with pytest.raises(ValueError, match="not interleaved"):
            grammar_of(dialogue, form, ROWS, CPU)
    with pytest.raises(ValueError, match="cannot be interleaved"):
        PublishedDialogue(dialogue.tokenizer, interleaving=InterleavedReplies())
