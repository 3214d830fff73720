"""Conversations as pieces of token rows, by any tokenizer's chat template; what other templates need too.

A text becomes ids with special tokens off: a user who types `</s>` or the name of a role types text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, Protocol

from speechgpt.dialogue import Message, NoUnitsError, Reply, Speech
from speechgpt.typed_text import TextEncoder
from speechgpt.vocab import UnitVocab
from units.runtime.refusals import Reason, RefusedError
from variants.listening import Piece, Tokens


class Template(Protocol):
    """How conversations are written for one LLM."""

    def document(self, messages: Sequence[Message], one_text: bool = True) -> list[Piece]:
        """A whole conversation; the loss counts the last reply and the token that ends it.

        Args:
            one_text: a question in text alone is written as one text, as the published stage 1 of BLSP does; else in
                pieces, as in a chat. Templates that know no difference ignore it.
        """

    def prompt(self, messages: Sequence[Message]) -> list[Piece]:
        """The pieces after which the LLM replies."""

    def text(self, text: str) -> list[int]:
        """Ids of a text where speech may stand."""


def text_encoder(tokenizer: Any) -> TextEncoder:
    """Encodes text with a tokenizer that has no units, with special tokens off."""
    return TextEncoder(tokenizer, UnitVocab(len(tokenizer), 0, {}))


class ChatTemplate:
    """The chat template of a tokenizer. Its own words may be special tokens; those of users are text."""

    name: Literal["chat"] = "chat"

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise ValueError("this tokenizer has no chat template; set another template")
        self._tokenizer = tokenizer
        self._encode = text_encoder(tokenizer).encode
        self._special = {token for token, word in tokenizer.added_tokens_decoder.items() if word.special}

    def document(self, messages: Sequence[Message], one_text: bool = True) -> list[Piece]:
        *before, answer = self._pieces(messages, opened=False)
        *before, reply = before
        assert isinstance(reply, Tokens) and isinstance(answer, Tokens)
        ends = [place for place, token in enumerate(answer.ids) if token in self._special]
        if not ends:
            raise ValueError("this chat template ends a reply with no special token; set another template")
        ended = ends[0] + 1
        return [*before, Tokens([*reply.ids, *answer.ids[:ended]], train=True)]

    def prompt(self, messages: Sequence[Message]) -> list[Piece]:
        return self._pieces(messages, opened=True)

    def instruct(self, instruction: str) -> list[Piece]:
        return self.prompt([Message("human", (instruction,))])

    def read_aloud(self, instruction: str, transcript: str) -> list[int]:
        message = Message("human", (instruction, transcript) if instruction else (transcript,))
        return [token for piece in self.prompt([message]) if isinstance(piece, Tokens) for token in piece.ids]

    def text(self, text: str) -> list[int]:
        return self._encode(text)

    def _pieces(self, messages: Sequence[Message], opened: bool) -> list[Piece]:
        """Pieces of some turns. Each part of a message is rendered as a stand-in, and then replaced.

        Args:
            opened: end with what opens a reply.
        """
        parts: list[str | Speech] = []
        turns = []
        for message in messages:
            human = message.role == "human"
            found = [checked(part) for part in message.parts] if human else [reply_text(message)]
            names = []
            for part in found:
                names.append(f"\ue000{len(parts)}\ue001")  # of the private use area: no template has such characters
                parts.append(part)
            turns.append({"role": "user" if human else "assistant", "content": "\n".join(names)})
        text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=opened)
        pieces: list[Piece] = []
        for place, written in enumerate(re.split("\ue000(\\d+)\ue001", text)):
            part = parts[int(written)] if place % 2 else None
            if isinstance(part, Speech):
                pieces.append(part)
            elif part is not None:
                pieces.append(Tokens(self._encode(part)))
            else:
                pieces.append(Tokens(self._tokenizer.encode(written, add_special_tokens=False)))
        return pieces


def checked(part: Any) -> str | Speech:
    """A part that is text or a recording.

    Raises: NoUnitsError for units, which this system does not read.
    """
    if isinstance(part, (str, Speech)):
        return part
    raise NoUnitsError(
        "this system reads text and recordings, not units; build the conversations with instruct-build --speech audio, "
        "or both"
    )


class ReplyReason(Reason):
    """Why a reply cannot be learned."""

    NO_TEXT = "no_reply_text"
    """it is empty, or of units alone"""


def reply_text(message: Message) -> str:
    """The text of a reply.

    Raises: RefusedError if it has none.
    """
    text = Reply.from_parts(message.parts).text
    if not text:
        raise RefusedError(ReplyReason.NO_TEXT, "a reply has no text, and this system answers in text")
    return text
