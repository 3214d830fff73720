"""Attention within documents, for packed blocks: document by document, or by torch's kernel for rows of many lengths.

A mask would have every token of a block scored against every other, and most of it thrown away; short documents in long
blocks cost a multiple of what they need. Registered with transformers as `by_document` and `varlen`; a model opts in by
its attn_implementation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

BY_DOCUMENT = "by_document"
VARLEN = "varlen"

_lengths = WeakTensorKeyDictionary()  # of documents, by their position_ids: layers share one look, and one wait for it


def takes_bounds(model: Any) -> bool:
    """Whether a model's attention wants to be told where documents begin and end; it then sees one row, (1, L)."""
    name = str(model.config._attn_implementation)
    return name == VARLEN or "flash" in name


def bounds(position_ids: Tensor) -> dict[str, Any]:
    """Where documents begin and end, under the names that transformers hands on to attention.

    Without them flash-attention asks position_ids in each layer, and the GPU waits for each answer.

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
    """Attention without cuDNN, which plans anew for each length that it has not met yet, where it is preferred (H100)."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def by_document(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    dropout: float = 0.0, scaling: float | None = None, position_ids: Tensor | None = None,
    sliding_window: int | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Causal attention within each document of each row; a document begins where position_ids is 0.

    Args:
        query, key, value: (B, heads, L, D); key and value may have fewer heads.
        position_ids: (B, L) or (1, L).

    Returns: (B, L, heads, D), as transformers wants it.
    """
    batch, heads, length, width = query.shape
    fresh = position_ids is not None and attention_mask is None and key.shape[2] == length
    lengths = _document_lengths(position_ids, batch) if fresh else None
    if lengths is None:  # one token after a cache, or a part of a document: nothing is packed here
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, sliding_window=sliding_window,
            **kwargs,
        )  # fmt: skip
    on_cpu = query.device.type == "cpu"  # whose half-precision kernels are slower than its full ones on short documents
    wide = torch.promote_types(query.dtype, torch.float32) if on_cpu else query.dtype
    parts = (whole.to(wide).transpose(1, 2).flatten(0, 1) for whole in (query, key, value))
    attended = []
    with torch.autocast(query.device.type, enabled=False) if on_cpu else any_length():
        # split's backward pass is one concatenation; a slice's would write a whole block for each document
        for document in zip(*(part.split(lengths) for part in parts), strict=True):
            q, k, v = (part.transpose(0, 1)[None] for part in document)
            mask = _window(q.shape[2], sliding_window, query.device)
            attended.append(
                scaled_dot_product_attention(
                    q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling,
                    enable_gqa=key.shape[1] != heads,
                )[0].transpose(0, 1)
            )  # fmt: skip
    return torch.cat(attended).view(batch, length, heads, width).to(query.dtype), None


def _document_lengths(position_ids: Tensor, batch: int) -> list[int] | None:
    """Tokens of each document, row after row; None where a row does not begin with one."""
    if position_ids not in _lengths:
        starts = torch.nonzero(position_ids.flatten() == 0).flatten().tolist()
        ends = [*starts[1:], position_ids.numel()]
        begun = set(range(0, position_ids.numel(), position_ids.shape[1])) <= set(starts)
        _lengths[position_ids] = [end - start for start, end in zip(starts, ends)] if begun else None
    found = _lengths[position_ids]
    return None if found is None else found * (batch // len(position_ids))  # one row of positions may do for all


def _window(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """Mask (length, length) of causal attention to the last `window` tokens; None where a document is shorter."""
    if not window or length <= window:
        return None
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().triu(1 - window)


def varlen(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    dropout: float = 0.0, scaling: float | None = None, sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None, max_length_q: int | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Causal attention within each document by torch.nn.attention.varlen: flash-attention without a package of its own.

    Args:
        query, key, value: (B, heads, L, D), on a GPU; key and value may have fewer heads.
        cu_seq_lens_q, max_length_q: of `bounds`; without them, as in generation, it is by_document.

    Returns: (B, L, heads, D), as transformers wants it.
    Raises: ValueError for dropout, which the kernel does not know.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        return by_document(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, sliding_window=sliding_window,
            **kwargs,
        )  # fmt: skip
    if dropout:
        raise ValueError(
            f"attention: varlen knows no dropout, and the model asks for {dropout}; choose another attention"
        )
    from torch.nn.attention.varlen import varlen_attn

    batch, heads, length, width = query.shape
    device = query.device.type  # rotary embeddings leave query and key in float32, which autocast does not see here
    half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    q, k, v = (part.transpose(1, 2).flatten(0, 1).to(half) for part in (query, key, value))
    # a window of (left, 0) is causal; transformers counts the token itself among those that it sees
    attended = varlen_attn(
        q, k, v, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, scale=scaling,
        window_size=(sliding_window - 1 if sliding_window else -1, 0), enable_gqa=key.shape[1] != heads,
    )  # fmt: skip
    return attended.view(batch, length, heads, width), None


AttentionInterface.register(BY_DOCUMENT, by_document)
AttentionInterface.register(VARLEN, varlen)
