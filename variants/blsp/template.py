"""Conversations as token rows: BLSP's own template, or any tokenizer's chat template.

    blsp    <s>###[Human]:{instruction} SPEECH \\n\\n\\n###[Assistant]: {answer}</s>
    chat    what the tokenizer's chat template makes of the turns, with speech in the user's turn

In BLSP's template each piece is tokenised alone, as by the published code, so that with sentencepiece each begins with
a space piece. A text becomes ids with special tokens off: a user who types `###[Human]:` or `</s>` types text.

Sources: blsp/src/speech_text_paired_dataset.py, text_instruction_dataset.py, generate.py and chat_demo.py of
github.com/cwang621/blsp (f7bf52f).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, Protocol

from speechgpt.dialogue import Message, NoUnitsError, Reply, Speech
from speechgpt.typed_text import TextEncoder
from speechgpt.vocab import UnitVocab
from variants.listening import Piece, Tokens

TemplateName = Literal["blsp", "chat"]
HUMAN, ASSISTANT = "###[Human]:", "\n\n\n###[Assistant]:"
BETWEEN_TURNS = "\n\n\n"
TEMPLATE_VERSION = 1  # for caches of tokens: raise it when this file gives other tokens


class Template(Protocol):
    """How conversations are written for one LLM."""

    name: TemplateName

    def document(self, messages: Sequence[Message], one_text: bool = True) -> list[Piece]:
        """A whole conversation; the loss counts the last reply and the token that ends it.

        Args:
            one_text: a question in text alone is written as one text, as the published stage 1 does; else in pieces, as
                in a chat. Templates that know no difference ignore it.
        """

    def prompt(self, messages: Sequence[Message]) -> list[Piece]:
        """The pieces after which the LLM replies."""

    def instruct(self, instruction: str) -> list[Piece]:
        """The pieces of a prompt that is an instruction alone."""

    def read_aloud(self, instruction: str, transcript: str) -> list[int]:
        """Ids of a prompt in which a transcript stands for the speech: what labels are written from."""

    def text(self, text: str) -> list[int]:
        """Ids of a text where speech may stand."""


def open_template(name: TemplateName, tokenizer: Any) -> Template:
    """The template of a name.

    Raises: ValueError if there is none, or the tokenizer has no chat template.
    """
    if name == "blsp":
        return BlspTemplate(tokenizer)
    if name == "chat":
        return ChatTemplate(tokenizer)
    raise ValueError(f"template is {name!r}; it is blsp, or chat for the tokenizer's own chat template")


def text_encoder(tokenizer: Any) -> TextEncoder:
    """Encodes text with a tokenizer that has no units, with special tokens off."""
    return TextEncoder(tokenizer, UnitVocab(len(tokenizer), 0, {}))


class BlspTemplate:
    """BLSP's template."""

    name: TemplateName = "blsp"

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError("template: blsp ends an answer with the tokenizer's eos_token, and it has none")
        self._encode = text_encoder(tokenizer).encode
        self._bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self._eos = [tokenizer.eos_token_id]

    def document(self, messages: Sequence[Message], one_text: bool = True) -> list[Piece]:
        human, reply = messages[-2], messages[-1]
        answer = Tokens([*self._encode(reply_text(reply)), *self._eos], train=True)
        if one_text and len(messages) == 2 and all(isinstance(part, str) for part in human.parts):
            text = HUMAN + " ".join(part for part in human.parts if isinstance(part, str)) + ASSISTANT
            return [Tokens([*self._bos, *self._encode(text)]), answer]
        return [*self.prompt(messages[:-1]), answer]

    def prompt(self, messages: Sequence[Message]) -> list[Piece]:
        pieces: list[Piece] = [Tokens(self._bos)]
        for message in messages:
            if message.role == "human":
                pieces += self._human(message)
                pieces.append(Tokens(self._encode(ASSISTANT)))
            else:
                pieces.append(Tokens(self._encode(reply_text(message) + BETWEEN_TURNS)))
        return pieces

    def instruct(self, instruction: str) -> list[Piece]:
        """As generate.py does, the instruction is one piece with the role, and what opens a reply is another."""
        return [Tokens([*self._bos, *self._encode(HUMAN + instruction)]), Tokens(self._encode(ASSISTANT))]

    def read_aloud(self, instruction: str, transcript: str) -> list[int]:
        asked = f"{instruction} {transcript}" if instruction else transcript
        return [*self._bos, *self._encode(f"{HUMAN}{asked}{ASSISTANT}")]

    def text(self, text: str) -> list[int]:
        return self._encode(text)

    def _human(self, message: Message) -> list[Piece]:
        """A text before speech is an instruction, of one piece with the role; a chat's text is a piece of its own."""
        parts = [checked(part) for part in message.parts]
        if len(parts) > 1 and isinstance(parts[0], str):
            parts = [HUMAN + parts[0], *parts[1:]]
        else:
            parts = [HUMAN, *parts]
        return [Tokens(self._encode(part)) if isinstance(part, str) else part for part in parts]


class ChatTemplate:
    """The chat template of a tokenizer. Its own words may be special tokens; those of users are text."""

    name: TemplateName = "chat"

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise ValueError("this tokenizer has no chat template; set template: blsp")
        self._tokenizer = tokenizer
        self._encode = text_encoder(tokenizer).encode
        self._special = {token for token, word in tokenizer.added_tokens_decoder.items() if word.special}

    def document(self, messages: Sequence[Message], one_text: bool = True) -> list[Piece]:
        *before, answer = self._pieces(messages, opened=False)
        *before, reply = before
        assert isinstance(reply, Tokens) and isinstance(answer, Tokens)
        ends = [place for place, token in enumerate(answer.ids) if token in self._special]
        if not ends:
            raise ValueError("this chat template ends a reply with no special token; set template: blsp")
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
        "BLSP reads text and recordings, not units; build the conversations with instruct-build --speech audio"
    )


def reply_text(message: Message) -> str:
    """The text of a reply.

    Raises: ValueError if it has none.
    """
    text = Reply.from_parts(message.parts).text
    if not text:
        raise ValueError("a reply has no text, and BLSP answers in text")
    return text
