"""Log-likelihoods of token sequences under a causal language model, in batches that change no score.

    log_likelihoods(model, [Row([sosp], [first_unit + 12, first_unit + 7])])

Sequences of similar length are batched and padded on the right. Causal attention never looks to the right, so padding
reaches no scored token, and positions need no correction: this holds for every causal architecture, and sorted by
length next to nothing is padding. Packing (stages/packing) would save that rest, and needs an attention of its own.

V words of the vocabulary, L tokens of the longest sequence of a batch, B sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from speechgpt.answers import Likelihood
from speechgpt.generation.generate import context_length

BATCH_TOKENS = 4096  # B times L at most
SCORES = 1 << 26  # logits in float32 at once: 256 MB


@dataclass(frozen=True)
class Row:
    """A token sequence: `context` is given, `scored` is what is scored behind it.

    Without context the first token has no score, as nothing predicts it.
    """

    context: list[int]
    scored: list[int]


def text_row(encode: Callable[[str], list[int]], start: list[int], context: str, text: str) -> Row:
    """The row of a text behind its context: the tokens of both together, split where those of the context end.

    A space between them goes to the text, where tokenizers of words expect it (lm-evaluation-harness, encode_pair).

    Args:
        encode: text -> token ids.
        start: tokens before everything, such as the tokenizer's start.
    """
    given = context.rstrip()
    before, whole = encode(given), encode(context + text)
    return Row(start + whole[: len(before)], whole[len(before) :])


class TooLong(ValueError):
    """A sequence is longer than the model's context."""


def log_likelihoods(model: PreTrainedModel, rows: Sequence[Row], batch_tokens: int = BATCH_TOKENS) -> list[Likelihood]:
    """The log-likelihood of the scored tokens of each row, in nats.

    Args:
        model: a causal language model in evaluation mode.
        rows: at least one token each.
        batch_tokens: tokens of a batch, padding included; 1 scores one row at a time.

    Raises:
        TooLong: a row is longer than the context.
    """
    most = context_length(model)
    for row in rows:
        if (length := len(row.context) + len(row.scored)) > most:
            raise TooLong(f"a sequence of {length} tokens is longer than the model's context of {most}; cut the audio")
    found: dict[int, Likelihood] = {}
    for batch in _batches([len(row.context) + len(row.scored) for row in rows], batch_tokens):
        found.update(zip(batch, _scored(model, [rows[i] for i in batch])))
    return [found[i] for i in range(len(rows))]


def _batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Indices of rows by length, the longest first, so that a batch that is too large fails at once."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > most:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@torch.inference_mode()
def _scored(model: PreTrainedModel, rows: Sequence[Row]) -> list[Likelihood]:
    width = max(len(row.context) + len(row.scored) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row.context) + len(row.scored)] = torch.tensor(row.context + row.scored)
    ids = ids.to(model.device)
    logits = model(input_ids=ids, use_cache=False).logits
    scores = []
    for row, tokens, predicted in zip(rows, ids, logits):
        first = max(len(row.context), 1)  # the token before each scored one predicts it
        end = len(row.context) + len(row.scored)
        scores.append(_of_tokens(predicted[first - 1 : end - 1], tokens[first:end]))
    return [Likelihood(score, len(row.scored) - (not row.context)) for row, score in zip(rows, scores)]


def _of_tokens(logits: torch.Tensor, tokens: torch.Tensor) -> float:
    """The sum of log p over tokens (L,) with logits (L, V), in float32, a slice at a time."""
    total, step = 0.0, max(1, SCORES // logits.shape[-1])
    for start in range(0, len(tokens), step):
        some = logits[start : start + step].float()
        chosen = some.gather(1, tokens[start : start + step, None])[:, 0]
        total += float((chosen - some.logsumexp(-1)).double().sum())
    return total
