"""Tokenizers of every kind: parsing inverts rendering, typed text stays text, replies obey the grammar."""

from __future__ import annotations

import functools
import unicodedata

import pytest
from any_conversation import check_read_back, conversations, parsed, texts
from hypothesis import HealthCheck, example, given, settings
from tiny_tokenizers import KINDS, special_words, widened_kind
from transformers import AutoTokenizer, PreTrainedModel

from speechgpt.dialogue import Conversation, Dialogue, Message
from speechgpt.generation.generate import generate
from speechgpt.sampling import Sampling
from speechgpt.vocab import EOA, EOH, HUMAN, SPEECHGPT

many = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", params=KINDS)
def opened(request, tmp_path_factory) -> tuple[Dialogue, PreTrainedModel]:
    """A widened tokenizer of each kind, saved and opened again, with a random model."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer, model = widened_kind(request.param, folder)
    tokenizer.save_pretrained(folder)
    return Dialogue(AutoTokenizer.from_pretrained(folder)), model


@pytest.fixture(scope="module")
def dialogue(opened) -> Dialogue:
    return opened[0]


def kept(dialogue: Dialogue, text: str) -> str:
    """A text as its tokenizer keeps it: that of Qwen composes characters."""
    normalizer = dialogue.tokenizer.backend_tokenizer.normalizer
    return unicodedata.normalize("NFC", text) if "NFC" in repr(normalizer) else text


@many
@given(conversation=conversations)
@example(Conversation((Message("human", ("",)), Message("assistant", ("",)))))
@example(Conversation((Message("human", ("<17>", (3,))), Message("assistant", ("[ta]", "[ua] <1>", (1,))))))
@example(Conversation((Message("human", ("(",)), Message("assistant", (";", ":)", (1,))))))
def test_a_conversation_is_read_back(dialogue: Dialogue, conversation: Conversation) -> None:
    rendered = dialogue.render(conversation).ids
    humans = sum(message.role == "human" for message in conversation.messages)
    for word in (HUMAN, EOH, SPEECHGPT, EOA):
        assert rendered.count(dialogue.vocab.special_id(word)) == humans
    check_read_back(conversation, parsed(dialogue, rendered), functools.partial(kept, dialogue))


@many
@given(text=texts)
def test_text_is_never_a_special_token(dialogue: Dialogue, text: str) -> None:
    special = set(dialogue.vocab.special_ids.values())
    words = [word.content for word in dialogue.tokenizer.added_tokens_decoder.values()]
    for typed in (text, *words[:20], *words[-12:], f"{text}{words[-1]}{text}"):
        ids = dialogue.encode_text(typed)
        assert not set(ids) & special_words(dialogue)
        assert not [token for token in ids if token in special or dialogue.vocab.is_unit(token)]
        assert dialogue.decode_text(ids) == kept(dialogue, typed.strip())


@pytest.mark.parametrize("form", ["text", "units", "chain"])
def test_replies_have_their_form(opened, form: str) -> None:
    dialogue, model = opened
    foreign = special_words(dialogue)
    assert foreign
    prompts = [dialogue.prompt([Message("human", parts)]) for parts in (("what is",), ((1, 2),), ("(hear", (7,)))]
    for seed in range(3):
        sampling = Sampling(temperature=2.0, max_new_tokens=60, seed=seed)
        for ids in generate(model, dialogue, prompts, form, sampling):
            assert not set(ids) & foreign and max(ids) < len(dialogue.tokenizer)
            said = dialogue.parse_reply(ids, chained=form == "chain")
            assert dialogue.render(
                Conversation((Message("human", ("x",)), Message("assistant", said.parts() or ("",))))
            )
