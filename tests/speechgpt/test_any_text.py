"""Rendering, then parsing: typed text comes back unchanged and never becomes a unit or a special token."""

from __future__ import annotations

from any_conversation import check_read_back, conversations, parsed
from hypothesis import example, given, settings
from tiny_parts import K

from instruct_data.build.records import conversation_line, parse_conversation
from speechgpt.dialogue import Conversation, Dialogue, Message
from speechgpt.vocab import EOA, EOH, HUMAN, SPEECHGPT
from units.codebook import Codebook

CODEBOOK = Codebook("tiny", "mfcc", 0, K, 50.0, "none", "0123abcd")
# a human says one text, one sound, or a text and then a sound


@settings(max_examples=300)
@given(conversation=conversations)
@example(Conversation((Message("human", ("",)), Message("assistant", ("",)))))
@example(Conversation((Message("human", ("<17>", (3,))), Message("assistant", ("[ta]", "[ua] <1>", (1,))))))
def test_parsing_is_the_inverse_of_rendering(dialogue: Dialogue, conversation: Conversation) -> None:
    check_read_back(conversation, parsed(dialogue, dialogue.render(conversation).ids))


@settings(max_examples=300)
@given(conversation=conversations)
def test_text_and_units_are_never_confused(dialogue: Dialogue, conversation: Conversation) -> None:
    ids = dialogue.render(conversation).ids
    sounds = [
        unit
        for message in conversation.messages
        for part in message.parts
        if not isinstance(part, str)
        for unit in part
    ]
    assert [dialogue.vocab.first_unit_id + unit for unit in sounds] == [
        token for token in ids if dialogue.vocab.is_unit(token)
    ]
    humans = sum(message.role == "human" for message in conversation.messages)
    for word in (HUMAN, EOH, SPEECHGPT, EOA):
        assert ids.count(dialogue.vocab.special_id(word)) == humans


@given(conversation=conversations)
def test_records_keep_every_character(conversation: Conversation) -> None:
    line = conversation_line(conversation)
    assert line.count(b"\n") == 1
    assert parse_conversation(line.decode(), "here", CODEBOOK) == Conversation(conversation.messages, "chat", "")
