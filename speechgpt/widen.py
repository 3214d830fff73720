"""Widen a text LLM by units: new words in the tokenizer, new rows in the embedding matrices."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled

from speechgpt.chat_template import prepare_for_serving
from speechgpt.vocab import UnitVocab, new_words

ROW_MULTIPLE = 64  # rows are padded to this multiple, for tensor cores; the padding is never sampled
Initialisation = Literal["random", "mean", "centres"]


def widen(
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    size: int,
    init: Initialisation = "mean",
    centres: Tensor | None = None,
    seed: int = 0,
) -> UnitVocab:
    """Add units and special tokens to a tokenizer and its model, in place, with the chat template and generation
    config.

    Rows behind the last word are cut off first: many models pad their matrices with untrained rows (Qwen2.5: 151,936
    rows for 151,665 words), and `mean` must not count them.

    Args:
        size: number of units K.
        init: how new rows start. `random`: normal with the model's own initializer_range, as in the code of the
            SpeechGPT paper. `mean`: normal around the mean of the old rows, with their covariance scaled down
            (transformers' default, after Hewitt 2021). `centres`: as `mean`, plus a random projection of the k-means
            centres, so that units that sound alike start alike.
        centres: float (K, D), needed for `centres`.
        seed: of the random rows.

    Returns:
        The vocabulary of the widened tokenizer.

    Raises:
        ValueError: the tokenizer has units already, or centres are missing or of another size.
    """
    words, known = new_words(size), tokenizer.get_vocab()
    taken = [word for word in words if word in known]
    if taken:
        raise ValueError(f"the tokenizer has {taken[0]} already; widen a text LLM, not a widened one")
    if init == "centres" and (centres is None or len(centres) != size):
        raise ValueError(f"init 'centres' needs the {size} centres of the unit encoder, shape (K, D)")
    old, rows = max(known.values()) + 1, model.get_input_embeddings().num_embeddings
    if rows > old:  # transformers initialises only the rows that it adds, so units would get untrained rows as they are
        model.resize_token_embeddings(old)
    tokenizer.add_tokens([AddedToken(word, special=True, normalized=False) for word in words], special_tokens=True)
    vocab = UnitVocab.from_words(table := tokenizer.get_vocab())
    torch.manual_seed(seed)
    model.resize_token_embeddings(
        max(table.values()) + 1, pad_to_multiple_of=ROW_MULTIPLE, mean_resizing=init != "random"
    )
    if init == "centres":
        _place_by_centres(model, vocab, centres, old, seed)
    prepare_for_serving(tokenizer, model)
    return vocab


@torch.no_grad()
def _place_by_centres(model: PreTrainedModel, vocab: UnitVocab, centres: Tensor, old: int, seed: int) -> None:
    """Add a random projection of each centre to its unit's row, with the deviation of the matrix's old rows."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    weights = [embedding] if head is embedding else [embedding, head]
    with gathered(weights):
        centred = (centres - centres.mean(0)).float()
        generator = torch.Generator().manual_seed(seed)
        projection = torch.randn(centres.shape[1], embedding.shape[1], generator=generator)
        placed = centred @ projection
        rows = slice(vocab.first_unit_id, vocab.first_unit_id + vocab.size)
        for weight in weights:
            weight[rows] += (placed * (weight[:old].float().std().cpu() / placed.std())).to(weight)


def gathered(weights: list[Tensor]) -> AbstractContextManager:
    """In this context every rank holds whole weights, also under DeepSpeed ZeRO-3; the first rank's are kept."""
    if not is_deepspeed_zero3_enabled():
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(weights, modifier_rank=0)
