"""Conversations as token rows, in one of three templates.

    llama_3   <|begin_of_text|>.. system text .. user SPEECH \\n instruction <|eot_id|> .. answer <|eot_id|>
    chat      what the tokenizer's chat template makes of the turns, with speech in the user's turn
    plain     <s> Q: SPEECH instruction A: answer </s>, for an LLM that knows no turns

llama_3 is the published one, word by word: its text spells the token that begins a text, and the tokenizer adds it once
more, so there are two. A text of a user becomes ids with special tokens off: who types `<|eot_id|>` types text.

Source: omni_speech/conversation.py and datasets/preprocess.py of github.com/ictnlp/LLaMA-Omni (c63fd72).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from speechgpt.dialogue import Message
from variants.listening import Piece, Tokens
from variants.speech_in.templates import ChatTemplate, Template, checked, reply_text, text_encoder

TemplateName = Literal["llama_3", "chat", "plain"]
TEMPLATE_VERSION = 1  # for caches of tokens: raise it when this file gives other tokens
BEGIN, OPEN, CLOSE, END = "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>"
SYSTEM_TEXT = (
    "You are a helpful language and speech assistant. You are able to understand the speech content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)


def open_template(name: TemplateName, tokenizer: Any) -> Template:
    """The template of a name.

    Raises: ValueError if there is none, or the tokenizer lacks what it needs.
    """
    if name == "llama_3":
        return Llama3Template(tokenizer)
    if name == "chat":
        return ChatTemplate(tokenizer)
    if name == "plain":
        return PlainTemplate(tokenizer)
    raise ValueError(f"template is {name!r}; it is llama_3, chat for the tokenizer's own chat template, or plain")


class Llama3Template:
    """The published template."""

    def __init__(self, tokenizer: Any) -> None:
        words = tokenizer.get_vocab()
        if missing := [word for word in (BEGIN, OPEN, CLOSE.strip(), END) if word not in words]:
            raise ValueError(f"template: llama_3 needs a tokenizer of Llama 3; this one has no {', '.join(missing)}")
        self.text = text_encoder(tokenizer).encode
        self._tokenizer = tokenizer
        self._bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]

    def document(self, messages: Sequence[Message], one_text: bool = True) -> list[Piece]:
        answer = [*self.text(reply_text(messages[-1])), *self._own(END)]
        return [*self.prompt(messages[:-1]), Tokens(answer, train=True)]

    def prompt(self, messages: Sequence[Message]) -> list[Piece]:
        pieces: list[Piece] = [Tokens([*self._bos, *self._own(f"{BEGIN}{OPEN}system{CLOSE}{SYSTEM_TEXT}{END}")])]
        for message in messages:
            if message.role == "human":
                pieces += [Tokens(self._own(f"{OPEN}user{CLOSE}")), *_parts(message, self.text)]
            else:
                pieces.append(Tokens([*self._own(f"{OPEN}assistant{CLOSE}"), *self.text(reply_text(message))]))
            pieces.append(Tokens(self._own(END)))
        return [*pieces, Tokens(self._own(f"{OPEN}assistant{CLOSE}"))]

    def _own(self, text: str) -> list[int]:
        """Ids of the template's own text, in which special tokens are such."""
        return self._tokenizer.encode(text, add_special_tokens=False)


class PlainTemplate:
    """A question and an answer, for an LLM that was trained on plain text."""

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError("template: plain ends an answer with the tokenizer's eos_token, and it has none")
        self.text = text_encoder(tokenizer).encode
        self._bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self._eos = [tokenizer.eos_token_id]

    def document(self, messages: Sequence[Message], one_text: bool = True) -> list[Piece]:
        answer = [*self.text(reply_text(messages[-1])), *self._eos]
        return [*self.prompt(messages[:-1]), Tokens(answer, train=True)]

    def prompt(self, messages: Sequence[Message]) -> list[Piece]:
        pieces: list[Piece] = [Tokens(self._bos)]
        for message in messages:
            if message.role == "human":
                pieces += [Tokens(self.text("Q:")), *_parts(message, self.text), Tokens(self.text("A:"))]
            else:
                pieces.append(Tokens([*self.text(reply_text(message)), *self._eos]))
        return pieces


def _parts(message: Message, text: Any) -> list[Piece]:
    """Pieces of what a human says: a line break lies between speech and text."""
    pieces: list[Piece] = []
    parts = [checked(part) for part in message.parts]
    for place, part in enumerate(parts):
        if not isinstance(part, str):
            pieces.append(part)
            continue
        before = "\n" if place and not isinstance(parts[place - 1], str) else ""
        after = "\n" if place + 1 < len(parts) else ""
        pieces.append(Tokens(text(before + part + after)))
    return pieces
