"""Conversations as token rows: BLSP's own template, or any tokenizer's chat template.

    blsp    <s>###[Human]:{instruction} SPEECH \\n\\n\\n###[Assistant]: {answer}</s>
    chat    what the tokenizer's chat template makes of the turns, with speech in the user's turn

In BLSP's template each piece is tokenised alone, as by the published code, so that with sentencepiece each begins with
a space piece. A text becomes ids with special tokens off: a user who types `###[Human]:` or `</s>` types text.

Sources: blsp/src/speech_text_paired_dataset.py, text_instruction_dataset.py, generate.py and chat_demo.py of
github.com/cwang621/blsp (f7bf52f).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from speechgpt.dialogue import Message
from variants.listening import Piece, Tokens
from variants.speech_in import templates
from variants.speech_in.templates import ChatTemplate, checked, reply_text, text_encoder

TemplateName = Literal["blsp", "chat"]
HUMAN, ASSISTANT = "###[Human]:", "\n\n\n###[Assistant]:"
BETWEEN_TURNS = "\n\n\n"
TEMPLATE_VERSION = 1  # for caches of tokens: raise it when this file gives other tokens


class Template(templates.Template, Protocol):
    """How conversations are written for one LLM, and what labels are written from."""

    @property
    def name(self) -> TemplateName: ...

    def instruct(self, instruction: str) -> list[Piece]:
        """The pieces of a prompt that is an instruction alone."""

    def read_aloud(self, instruction: str, transcript: str) -> list[int]:
        """Ids of a prompt in which a transcript stands for the speech: what labels are written from."""


def open_template(name: TemplateName, tokenizer: Any) -> Template:
    """The template of a name.

    Raises: ValueError if there is none, or the tokenizer has no chat template.
    """
    if name == "blsp":
        return BlspTemplate(tokenizer)
    if name == "chat":
        return ChatTemplate(tokenizer)
    raise ValueError(f"template is {name!r}; it is blsp, or chat for the tokenizer's own chat template")


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
