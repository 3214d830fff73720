"""Attention document by document: what packed blocks need, and no more, where no varlen kernel is at hand.

A mask would have every token of a block scored against every other, and most of it thrown away; short documents in long
blocks cost a multiple of what they need. Registered with transformers as `by_document`; a model opts in by its
attn_implementation.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

BY_DOCUMENT = "by_document"


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
    if position_ids is None or attention_mask is not None or key.shape[2] != length or (position_ids[:, 0] != 0).any():
        # one token after a cache, or a part of a document: nothing is packed here
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, sliding_window=sliding_window,
            **kwargs,
        )  # fmt: skip
    starts = torch.nonzero(position_ids.expand(batch, -1).flatten() == 0).flatten().tolist()
    lengths = [end - start for start, end in zip(starts, [*starts[1:], batch * length], strict=True)]
    on_cpu = query.device.type == "cpu"  # whose half-precision kernels are slower than its full ones on short documents
    wide = torch.promote_types(query.dtype, torch.float32) if on_cpu else query.dtype
    parts = (whole.to(wide).transpose(1, 2).flatten(0, 1) for whole in (query, key, value))
    attended = []
    with torch.autocast(query.device.type, enabled=False) if on_cpu else nullcontext():
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


def _window(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """Mask (length, length) of causal attention to the last `window` tokens; None where a document is shorter."""
    if not window or length <= window:
        return None
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().triu(1 - window)


AttentionInterface.register(BY_DOCUMENT, by_document)
