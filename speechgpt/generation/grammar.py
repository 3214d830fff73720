"""Which tokens a reply may hold next: units only between `<sosp>` and `<eosp>`, sections in order, never padding.

A grammar is a small automaton over classes of tokens. Each row of a batch has a state of its own.
"""

from __future__ import annotations

import weakref
from typing import Any, Literal

import torch
from torch import Tensor

from speechgpt.dialogue import Dialogue
from speechgpt.generation.interleaved_grammar import KnownTexts, Table, interleaved, known
from speechgpt.vocab import EOA, TA, TQ, UA, unused_word
from units.notation import EOSP, SOSP

Form = Literal["text", "units", "continuation", "chain", "interleaved"]

# state -> class of the next token -> next state; what is not listed is not allowed
_SPEECH = {
    "spoken": {"unit": "speaking"},
    "speaking": {"unit": "speaking", EOSP: "closed"},
    "closed": {EOA: "end"},
    "end": {EOA: "end"},  # a finished row waits for the others
}
GRAMMARS: dict[Form, Table] = {
    "text": {"start": {"text": "start", EOA: "end"}, "end": {EOA: "end"}},
    "units": {"start": {SOSP: "spoken"}, **_SPEECH},
    "continuation": {"start": _SPEECH["speaking"], **_SPEECH},  # of an utterance that has begun
    "chain": {
        "start": {TQ: "transcript", "text": "transcript"},
        "transcript": {"text": "transcript", TA: "answer"},
        "answer": {"text": "answered"},
        "answered": {"text": "answered", UA: "units"},
        "units": {SOSP: "spoken"},
        **_SPEECH,
    },
}
# Where [ta] and [ua] are spelled as text, speech may follow any text, and its end is that of the reply.
_SPELLED_SPEECH = {"spoken": {"unit": "speaking"}, "speaking": {"unit": "speaking", EOSP: "end"}, "end": {EOA: "end"}}
SPELLED: dict[Form, Table] = {
    "text": {"start": {"text": "start", EOA: "end"}, "end": {EOA: "end"}},
    "units": {"start": {SOSP: "spoken"}, **_SPELLED_SPEECH},
    "continuation": {"start": _SPELLED_SPEECH["speaking"], **_SPELLED_SPEECH},
    "chain": {
        "start": {"text": "written"},
        "written": {"text": "written", SOSP: "spoken", EOA: "end"},
        **_SPELLED_SPEECH,
    },
}
CLASSES = ("text", "unit", SOSP, EOSP, TQ, TA, UA, EOA, "never")


class Grammar:
    """One form of reply over one vocabulary. A state is a number."""

    def __init__(
        self,
        dialogue: Dialogue,
        form: Form | KnownTexts,
        rows: int,
        device: torch.device,
        class_of: Tensor | None = None,
    ) -> None:
        """
        Args:
            rows: of the output embedding; those beyond the tokenizer's words are padding.
            class_of: of another grammar of the vocabulary, where it is known.

        Raises:
            ValueError: the form is interleaved, and the dialogue is not.
        """
        grammar, wanted, begins = _states(dialogue, form)
        number = {state: i for i, state in enumerate(grammar)}
        self._class_of = _token_classes(dialogue, rows).to(device) if class_of is None else class_of
        table = torch.full((len(number), len(CLASSES)), -1)
        for state, row in grammar.items():
            for name, after in row.items():
                table[number[state], CLASSES.index(name)] = number[after]
        self._after = table.to(device)
        self._begins = [number[state] for state in begins]
        self._wanted = torch.tensor([wanted.get(state, -1) for state in number], device=device) if wanted else None

    def begins(self, rows: int) -> list[int]:
        """The state of each row of a batch where its reply begins: 0, but for texts that are known."""
        return self._begins or [0] * rows

    def allowed(self, states: Tensor) -> Tensor:
        """Which tokens may come next: (B,) -> bool (B, V)."""
        allowed = self._after[states][:, self._class_of] >= 0
        if self._wanted is None:
            return allowed
        wanted = self._wanted[states][:, None]
        text = self._class_of == CLASSES.index("text")
        return allowed & ~(text & (wanted >= 0) & (torch.arange(len(text), device=text.device) != wanted))

    def after(self, states: Tensor, tokens: Tensor) -> Tensor:
        """The state of each row after a token: (B,), (B,) -> (B,)."""
        return self._after[states, self._class_of[tokens]]


_MADE: weakref.WeakKeyDictionary[Any, dict[tuple, Grammar]] = weakref.WeakKeyDictionary()


def grammar_of(dialogue: Dialogue, form: Form | KnownTexts, rows: int, device: torch.device) -> Grammar:
    """The grammar of a form; it is made once for each tokenizer, but for texts that are known. rows: as for Grammar."""
    if isinstance(form, KnownTexts):
        return Grammar(dialogue, form, rows, device, grammar_of(dialogue, "text", rows, device)._class_of)
    made = _MADE.setdefault(dialogue.tokenizer, {})
    key = (type(dialogue), form, dialogue.interleaving if form == "interleaved" else None, rows, device)
    if key not in made:
        made[key] = Grammar(dialogue, form, rows, device)
    return made[key]


def _states(dialogue: Dialogue, form: Form | KnownTexts) -> tuple[Table, dict[str, int], list[str]]:
    """The automaton of a form, the text tokens that follow its states where they are known, and where rows begin."""
    if isinstance(form, str) and form != "interleaved":
        return (GRAMMARS if TA in dialogue.vocab.special_ids else SPELLED)[form], {}, []
    if dialogue.interleaving is None:
        raise ValueError("this model's replies are not interleaved: its speechgpt.json does not say so")
    if isinstance(form, KnownTexts):
        return known(form, dialogue.interleaving)
    return interleaved(dialogue.interleaving), {}, []


def _token_classes(dialogue: Dialogue, rows: int) -> Tensor:
    """Index into CLASSES for every row of the output embedding; foreign special tokens and padding rows are "never"."""
    vocab, tokenizer = dialogue.vocab, dialogue.tokenizer
    of = torch.full((rows,), CLASSES.index("never"))
    used = [token for word, token in tokenizer.get_vocab().items() if word != unused_word(token) and token < rows]
    of[used] = CLASSES.index("text")
    # all_special_ids has only the named ones; a chat model's turns and reserved words are added tokens
    added = [token for token, word in tokenizer.added_tokens_decoder.items() if word.special]
    of[[*tokenizer.all_special_ids, *added, *vocab.special_ids.values()]] = CLASSES.index("never")
    of[vocab.first_unit_id : vocab.first_unit_id + vocab.size] = CLASSES.index("unit")
    for word, token in vocab.special_ids.items():
        if word in CLASSES:
            of[token] = CLASSES.index(word)
    of[list(dialogue.ends)] = CLASSES.index(EOA)
    return of
