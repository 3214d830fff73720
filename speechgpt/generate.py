"""Sampling with a grammar: units stand only inside `<sosp>` .. `<eosp>`, sections come in order, padding never comes.

A grammar is a small automaton over classes of tokens. Each row of a batch walks it on its own, and at every step all
tokens that its state does not allow are ruled out before sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from speechgpt.dialogue import Dialogue
from speechgpt.vocab import EOA, EOH, HUMAN, SPEECHGPT, TA, TQ, UA
from units.notation import EOSP, SOSP

Form = Literal["text", "units", "chain"]

# state -> class of the next token -> next state; what is not listed is not allowed
GRAMMARS: dict[Form, dict[str, dict[str, str]]] = {
    "text": {"start": {"text": "start", EOA: "end"}},
    "units": {"start": {SOSP: "spoken"}, "spoken": {"unit": "speaking"}, "speaking": {"unit": "speaking", EOSP: "closed"},
              "closed": {EOA: "end"}},
    "chain": {"start": {TQ: "heard", "text": "heard"}, "heard": {"text": "heard", TA: "answer"},
              "answer": {"text": "answered"}, "answered": {"text": "answered", UA: "units"}, "units": {SOSP: "spoken"},
              "spoken": {"unit": "speaking"}, "speaking": {"unit": "speaking", EOSP: "closed"}, "closed": {EOA: "end"}},
}  # fmt: skip


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. temperature 0 takes the likeliest; top_k 0 and top_p 1 leave all in.

    max_new_tokens bounds a reply. seed makes draws repeatable. takes: how often a reply may be spoken until the model
    understands itself (speechgpt/takes.py); 1 does not listen.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 1024
    seed: int | None = None
    takes: int = 3

    def __post_init__(self) -> None:
        if self.takes < 1:
            raise ValueError(f"takes is {self.takes}; a reply is spoken at least once")


class GrammarProcessor(LogitsProcessor):
    """Rules out tokens that the form does not allow; one state a row, followed token by token."""

    def __init__(
        self, dialogue: Dialogue, form: Form, vocab_rows: int, prompt_length: int, device: torch.device
    ) -> None:
        grammar = GRAMMARS[form]
        states = [*grammar, "end"]
        classes = ["text", "unit", SOSP, EOSP, TQ, TA, UA, EOA, "never"]
        self._class_of = _token_classes(dialogue, classes, vocab_rows).to(device)
        table = torch.full((len(states), len(classes)), -1)
        for state, row in grammar.items():
            for name, after in row.items():
                table[states.index(state), classes.index(name)] = states.index(after)
        table[states.index("end")] = states.index("end")  # a finished row is filled with padding by generate
        self._after = table.to(device)
        self._state: Tensor | None = None
        self._prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, L), (B, V) -> (B, V) with forbidden tokens at minus infinity."""
        if input_ids.shape[1] == self._prompt_length:
            self._state = torch.zeros(len(input_ids), dtype=torch.long, device=scores.device)
        else:
            self._state = self._after[self._state, self._class_of[input_ids[:, -1]]]
        allowed = self._after[self._state][:, self._class_of] >= 0
        return scores.masked_fill(~allowed, float("-inf"))


def _token_classes(dialogue: Dialogue, classes: list[str], vocab_rows: int) -> Tensor:
    """Index into `classes` of every row of the output embedding; special tokens and padding rows are "never"."""
    vocab, tokenizer = dialogue.vocab, dialogue.tokenizer
    of = torch.full((vocab_rows,), classes.index("never"))
    of[: len(tokenizer)] = classes.index("text")
    of[vocab.first_unit_id : vocab.first_unit_id + vocab.size] = classes.index("unit")
    for token in tokenizer.all_special_ids:
        if not vocab.is_unit(token):
            of[token] = classes.index("never")
    for word in (SOSP, EOSP, TQ, TA, UA, EOA):
        if word in vocab.markers:
            of[vocab.markers[word]] = classes.index(word)
    for word in (HUMAN, SPEECHGPT, EOH):
        if word in vocab.markers:
            of[vocab.markers[word]] = classes.index("never")
    return of


@torch.inference_mode()
def generate(
    model: PreTrainedModel, dialogue: Dialogue, prompts: Sequence[list[int]], form: Form, sampling: Sampling
) -> list[list[int]]:
    """Reply ids of each prompt, `<eoa>` included when the model reached it. Prompts of any lengths run as one batch.

    Raises: ValueError if a prompt leaves no room in the model's context.
    """
    if not prompts:
        return []
    room = model.config.max_position_embeddings - max(map(len, prompts))
    if room < 1:
        raise ValueError(
            f"the prompt has {max(map(len, prompts))} tokens and this model's context is {model.config.max_position_embeddings}; "
            "give less audio or text"
        )
    if sampling.seed is not None:
        torch.manual_seed(sampling.seed)
    width, device = max(map(len, prompts)), model.device
    pad = dialogue.vocab.marker(EOA)
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    grammar = GrammarProcessor(dialogue, form, model.get_output_embeddings().weight.shape[0], width, device)
    drawn = {"do_sample": True, "temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=min(sampling.max_new_tokens, room),
        logits_processor=LogitsProcessorList([grammar]),
        eos_token_id=pad,
        pad_token_id=pad,
        **(drawn if sampling.temperature > 0 else {"do_sample": False}),
    )
    replies = out[:, width:].tolist()
    return [reply[: reply.index(pad) + 1] if pad in reply else reply for reply in replies]
