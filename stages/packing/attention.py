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
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

BY_DOCUMENT = "by_document"
VARLEN = "varlen"

# Arguments that models pass on to attention and that do not change what it computes. Anything else that has a value is
# refused: sinks (s_aux of gpt-oss), soft-capping (Gemma 2) and the like would otherwise be left out unnoticed.
HARMLESS = {
    "use_cache",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "num_items_in_batch",
    "cache_position",
    "past_key_values",
    "position_embeddings",
    "position_ids",
    "logits_to_keep",
    "labels",
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
    "layer_idx",
}

_lengths = WeakTensorKeyDictionary()  # of documents, by their position_ids: computed once for all layers


def takes_bounds(model: Any) -> bool:
    """Whether a model's attention takes the bounds of documents; its batch is then one row, (1, L)."""
    name = str(model.config._attn_implementation)
    return name == VARLEN or "flash" in name


def takes_one_row(model: Any) -> bool:
    """Whether a batch is all its blocks end to end, (1, L): for each attention that keeps documents apart by itself."""
    return takes_bounds(model) or model.config._attn_implementation == BY_DOCUMENT


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


class AttentionError(ValueError):
    """An attention that cannot compute what a model needs, or does not keep packed documents apart."""


def refuse_unknown(attention: str, given: dict[str, Any]) -> None:
    """Raise AttentionError for an argument that an attention of ours would leave out."""
    unknown = sorted(name for name, value in given.items() if name not in HARMLESS and value is not None)
    unknown = [name for name in unknown if not (name == "is_causal" and given[name] is True)]
    if unknown:
        raise AttentionError(
            f"this model needs {', '.join(unknown)}, which attention: {attention} does not compute; use attention: "
            "auto, or eager"
        )


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

    Returns: (B, L, heads, D), as transformers needs it; D of the values, where it is another than of the queries.
    Raises: AttentionError for an argument that it does not compute.
    """
    refuse_unknown(BY_DOCUMENT, kwargs)
    batch, heads, length, _ = query.shape
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
    return torch.cat(attended).view(batch, length, heads, value.shape[-1]).to(query.dtype), None


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
    Raises: AttentionError for dropout, which the kernel does not have, and for an argument that it does not compute.
    """
    refuse_unknown(VARLEN, kwargs)
    if cu_seq_lens_q is None or max_length_q is None:
        settings = {"dropout": dropout, "scaling": scaling, "sliding_window": sliding_window, **kwargs}
        return by_document(module, query, key, value, attention_mask, **settings)
    if dropout:
        raise AttentionError(
            f"attention: varlen has no dropout, and the model's is {dropout}; choose another attention"
        )
    from torch.nn.attention.varlen import varlen_attn

    batch, heads, length, width = query.shape
    narrow = value.shape[-1]  # of the values; the kernel has one width
    value = torch.nn.functional.pad(value, [0, width - narrow])
    device = query.device.type  # rotary embeddings leave query and key in float32, which autocast does not change here
    half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    q, k, v = (part.transpose(1, 2).flatten(0, 1).to(half) for part in (query, key, value))
    # a window of (left, 0) is causal; transformers counts the token itself as part of its window
    window = (sliding_window - 1 if sliding_window else -1, 0)
    gqa = key.shape[1] != heads
    ends, longest = (cu_seq_lens_q, cu_seq_lens_q), (max_length_q, max_length_q)
    attended = varlen_attn(q, k, v, *ends, *longest, scale=scaling, window_size=window, enable_gqa=gqa)
    return attended.view(batch, length, heads, width)[..., :narrow], None


AttentionInterface.register(BY_DOCUMENT, by_document)
AttentionInterface.register(VARLEN, varlen)
