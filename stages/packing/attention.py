"""Attention within documents, for packed blocks: document by document, or by torch's kernel for rows of many lengths.

With a mask, attention scores every token of a block against every other, and discards most of the scores: short
documents in long blocks cost a multiple of what they need. Registered with transformers as `by_document` and `varlen`;
a model uses one of them by its attn_implementation.

B rows of a batch, L tokens of a row, D width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import (
    AttentionInterface,
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

BY_DOCUMENT = "by_document"
VARLEN = "varlen"

_lengths = WeakTensorKeyDictionary()  # of documents, by their position_ids: computed once for all layers


def takes_bounds(model: Any) -> bool:
    """Whether a model's attention takes the bounds of documents; its batch is then one row, (1, L)."""
    name = str(model.config._attn_implementation)
    return name == VARLEN or "flash" in name


def bounds(position_ids: Tensor) -> dict[str, Any]:
    """Bounds of documents, under the names that transformers passes on to attention.

    Without them flash-attention derives them from position_ids in each layer, and waits for the GPU each time.

    Args:
        position_ids: (1, L), 0 where a document begins.

    Returns: cu_seq_lens_q and cu_seq_lens_k, int32 (documents + 1,); max_length_q and max_length_k, plain numbers.
    """
    row = position_ids.flatten()
    starts = torch.nonzero(row == 0).flatten()
    ends = torch.cat([starts, starts.new_tensor([len(row)])]).int()
    longest = int(ends.diff().max())
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}


@contextmanager
def any_length() -> Iterator[None]:
    """Attention without cuDNN, which compiles a plan for each new length where it is preferred (H100)."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def by_document(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_ids: Tensor | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document of each row; a document begins where position_ids is 0.

    Args:
        query, key, value: (B, heads, L, D); key and value may have fewer heads.
        position_ids: (B, L) or (1, L).

    Returns: (B, L, heads, D), as transformers needs it.
    """
    batch, heads, length, width = query.shape
    fresh = position_ids is not None and attention_mask is None and key.shape[2] == length
    lengths = _document_lengths(position_ids, batch) if fresh else None
    if lengths is None:  # one token after a cache, or a part of a document: nothing is packed here
        settings = {"dropout": dropout, "scaling": scaling, "sliding_window": sliding_window, **kwargs}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    on_cpu = query.device.type == "cpu"  # its half-precision kernels are slower than its full ones on short documents
    wide = torch.promote_types(query.dtype, torch.float32) if on_cpu else query.dtype
    parts = (whole.to(wide).transpose(1, 2).flatten(0, 1) for whole in (query, key, value))
    attended = []
    with torch.autocast(query.device.type, enabled=False) if on_cpu else any_length():
        # split's backward pass is one concatenation; a slice's would write a whole block for each document
        for document in zip(*(part.split(lengths) for part in parts), strict=True):
            q, k, v = (part.transpose(0, 1)[None] for part in document)
            mask = _window(q.shape[2], sliding_window, query.device)
            found = scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=key.shape[1] != heads,
            )
            attended.append(found[0].transpose(0, 1))
    return torch.cat(attended).view(batch, length, heads, width).to(query.dtype), None


def _document_lengths(position_ids: Tensor, batch: int) -> list[int] | None:
    """Tokens of each document, row after row; None if a row does not begin with a document."""
    if position_ids not in _lengths:
        starts = torch.nonzero(position_ids.flatten() == 0).flatten().tolist()
        ends = [*starts[1:], position_ids.numel()]
        begun = set(range(0, position_ids.numel(), position_ids.shape[1])) <= set(starts)
        _lengths[position_ids] = [end - start for start, end in zip(starts, ends)] if begun else None
    found = _lengths[position_ids]
    return (
        None if found is None else found * (batch // len(position_ids))
    )  # one row of positions may stand for all rows


def _window(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """Mask (length, length) of causal attention to the last `window` tokens; None where a document is shorter."""
    if not window or length <= window:
        return None
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().triu(1 - window)


def varlen(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document by torch.nn.attention.varlen: flash-attention without another package.

    Args:
        query, key, value: (B, heads, L, D), on a GPU; key and value may have fewer heads.
        cu_seq_lens_q, max_length_q: from `bounds`; without them, as in generation, this is by_document.

    Returns: (B, L, heads, D), as transformers needs it.
    Raises: ValueError for dropout, which the kernel does not have.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        settings = {"dropout": dropout, "scaling": scaling, "sliding_window": sliding_window, **kwargs}
        return by_document(module, query, key, value, attention_mask, **settings)
    if dropout:
        raise ValueError(f"attention: varlen has no dropout, and the model's is {dropout}; choose another attention")
    from torch.nn.attention.varlen import varlen_attn

    batch, heads, length, width = query.shape
    device = query.device.type  # rotary embeddings leave query and key in float32, which autocast does not change here
    half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    q, k, v = (part.transpose(1, 2).flatten(0, 1).to(half) for part in (query, key, value))
    # a window of (left, 0) is causal; transformers counts the token itself as part of its window
    window = (sliding_window - 1 if sliding_window else -1, 0)
    gqa = key.shape[1] != heads
    ends, longest = (cu_seq_lens_q, cu_seq_lens_q), (max_length_q, max_length_q)
    attended = varlen_attn(q, k, v, *ends, *longest, scale=scaling, window_size=window, enable_gqa=gqa)
    return attended.view(batch, length, heads, width), None


@torch.no_grad()
def check_packing(model: PreTrainedModel) -> None:
    """Check that packed documents do not attend to each other: a change of the first must not change the second.

    Raises: ValueError if it does; then this architecture, or its attention, does not use position_ids.
    """
    training, device = model.training, model.device
    model.eval()
    half = 8
    positions = torch.arange(half, device=device).repeat(2)[None]
    packed = bounds(positions) if takes_bounds(model) else {}
    scores = []
    for first in (1, 2):
        ids = torch.cat([torch.full((half,), first), torch.arange(3, 3 + half)])[None].to(device)
        output = model(input_ids=ids, position_ids=positions, use_cache=False, **packed)
        scores.append(output.logits[0, half:].float())
    model.train(training)
    leak = (scores[0] - scores[1]).abs().max().item()
    if leak > 1e-3 * scores[0].abs().max().item():
        raise ValueError(
            f"{type(model).__name__} with {model.config._attn_implementation} attention lets packed documents attend "
            "to "
            f"each other (logits move by {leak:.2g}); choose another attention: sdpa or eager, or another model"
        )


class PackingCheck(TrainerCallback):
    """Runs check_packing before the first step.

    With attention: auto, a model that does not work with by_document gets sdpa instead.
    """

    def __init__(self, attention: str, language_model: Any = None) -> None:
        """
        Args:
            attention: as the config names it.
            language_model: the causal LLM in the trained model, if that is not the model itself.
        """
        self.attention, self.language_model = attention, language_model

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model=None, **kwargs
    ) -> None:
        checked = model if self.language_model is None else self.language_model
        try:
            check_packing(checked)
        except ValueError:
            if self.attention != "auto" or checked.config._attn_implementation != BY_DOCUMENT:
                raise
            checked.set_attn_implementation("sdpa")
            check_packing(checked)


AttentionInterface.register(BY_DOCUMENT, by_document)
AttentionInterface.register(VARLEN, varlen)
