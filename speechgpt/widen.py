"""Widen a text LLM by units: new words in the tokenizer, new rows in the embedding matrices."""

from __future__ import annotations

import json
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled

from speechgpt.chat_template import prepare_for_serving
from speechgpt.vocab import UnitVocab, VocabularyError, new_words, unused_word

ROW_MULTIPLE = 64  # rows are padded to this multiple, for tensor cores; the padding is never sampled
Initialisation = Literal["random", "mean", "centres"]


def widen(
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    size: int,
    init: Initialisation = "mean",
    centres: Tensor | None = None,
    seed: int = 0,
    scale: float | None = None,
) -> UnitVocab:
    """Add units and special tokens to a tokenizer and its model, in place, with the chat template and generation
    config.

    Rows behind the last word are cut off first: many models pad their matrices with untrained rows (Qwen2.5: 151,936
    rows for 151,665 words), and `mean` must not count them. New words get ids behind every id that is in use: an id
    that the tokenizer leaves out becomes an unused word.

    Args:
        size: number of units K.
        init: how new rows start. `random`: normal with the model's own initializer_range, as in the code of the
            SpeechGPT paper. `mean`: normal around the mean of the old rows, with their covariance scaled down
            (transformers' default, after Hewitt 2021). `centres`: as `mean`, plus a random projection of the k-means
            centres, so that units that sound alike start alike.
        centres: float (K, D), needed for `centres`.
        seed: of the random rows.
        scale: standard deviation of the new rows around their place, as a multiple of the old rows' own. The place is 0
            for `random`, else the mean of the old rows. Default: initializer_range for `random`, next to none for
            `mean`, 1 for `centres`. Which one learns fastest: docs/decisions/widening.md.

    Returns:
        The vocabulary of the widened tokenizer.

    Raises:
        VocabularyError: the tokenizer has a unit or a special token already, or gaps in its ids that cannot be filled.
        ValueError: centres are missing or of another size, or the scale is negative.
    """
    if scale is not None and not (scale >= 0 and math.isfinite(scale)):
        raise ValueError(f"scale is {scale}; it must be a number of at least 0")
    words, known = new_words(size), tokenizer.get_vocab()
    taken = [word for word in words if word in known]
    if taken:
        raise VocabularyError(
            f"the tokenizer has {taken[0]} already; widen a text LLM, not a widened one, nor one with such a word"
        )
    if init == "centres" and (centres is None or len(centres) != size):
        raise ValueError(f"init 'centres' needs the {size} centres of the unit encoder, shape (K, D)")
    old, rows = max(known.values()) + 1, model.get_input_embeddings().num_embeddings
    _fill_gaps(tokenizer)
    tokenizer.add_tokens([AddedToken(word, special=True, normalized=False) for word in words], special_tokens=True)
    table = _as_saved(tokenizer)
    if any(table[word] < old for word in words) or any(table.get(word) != id for word, id in known.items()):
        raise VocabularyError(
            f"this tokenizer has {len(known)} words with {len(set(known.values()))} ids from 0 to {old - 1}: a "
            f"{type(tokenizer).__name__} cannot keep them apart from new words. Use the fast version (tokenizer.json) "
            "of a tokenizer in which each word has an id of its own."
        )
    vocab = UnitVocab.from_words(table)
    if rows > old:  # transformers initialises only the rows that it adds, so units would get untrained rows as they are
        model.resize_token_embeddings(old)
    torch.manual_seed(seed)
    model.resize_token_embeddings(
        max(table.values()) + 1, pad_to_multiple_of=ROW_MULTIPLE, mean_resizing=init != "random"
    )
    if init == "centres":
        _place_by_centres(model, vocab, centres, old, seed, 1.0 if scale is None else scale)
    elif scale is not None:
        _place_around(model, init, old, seed, scale)
    prepare_for_serving(tokenizer, model)
    return vocab


def _fill_gaps(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make an unused word of each id below the largest that no word has.

    Libraries give an added word the number of words as its id, which an old word has if the ids have gaps.
    """
    known = tokenizer.get_vocab()
    used = set(known.values())
    gaps = set(range(max(used))) - used
    if not gaps or not tokenizer.is_fast:
        return
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    words = state["model"].get("vocab")
    if isinstance(words, dict):  # that of a Unigram model is a list, without gaps
        # added words go in too: reading the tokenizer again would give them other ids
        words |= {word["content"]: word["id"] for word in state["added_tokens"]}
        words |= {unused_word(token): token for token in gaps}
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))


def _as_saved(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The words and ids that a tokenizer has after it was saved and opened again."""
    if not tokenizer.is_fast:
        return tokenizer.get_vocab()
    return Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()).get_vocab()


@torch.no_grad()
def _place_by_centres(
    model: PreTrainedModel, vocab: UnitVocab, centres: Tensor, old: int, seed: int, scale: float
) -> None:
    """Add a random projection of each centre to its unit's row, with `scale` times the deviation of the old rows."""
    weights = _matrices(model)
    with gathered(weights):
        centred = (centres - centres.mean(0)).float()
        generator = torch.Generator().manual_seed(seed)
        projection = torch.randn(centres.shape[1], weights[0].shape[1], generator=generator)
        placed = centred @ projection
        rows = slice(vocab.first_unit_id, vocab.first_unit_id + vocab.size)
        for weight in weights:
            weight[rows] += (placed * (scale * weight[:old].float().std().cpu() / placed.std())).to(weight)


@torch.no_grad()
def _place_around(model: PreTrainedModel, init: Initialisation, old: int, seed: int, scale: float) -> None:
    """Normal rows around 0 (`random`) or the mean of the old rows, with `scale` times their deviation."""
    weights = _matrices(model)
    generator = torch.Generator().manual_seed(seed)
    with gathered(weights):
        for weight in weights:
            known = weight[:old].float()
            drawn = torch.randn(len(weight) - old, weight.shape[1], generator=generator).to(known)
            middle = 0.0 if init == "random" else known.mean(0)
            weight[old:] = (middle + scale * known.std() * drawn).to(weight)


def _matrices(model: PreTrainedModel) -> list[Tensor]:
    """The embedding matrix, and that of the output where it is another one."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return [embedding] if head is embedding else [embedding, head]


def gathered(weights: list[Tensor]) -> AbstractContextManager:
    """In this context every rank holds whole weights, also under DeepSpeed ZeRO-3; the first rank's are kept."""
    if not is_deepspeed_zero3_enabled():
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(weights, modifier_rank=0)
