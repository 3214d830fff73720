"""torch's attention over documents of unequal length, for machines without a GPU."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention


def varlen_attn(
    q, k, v, cu_q, cu_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False
) -> torch.Tensor:
    """Replaces torch.nn.attention.varlen where there is no GPU: (T, heads, D), as its documentation says."""
    assert cu_q.dtype == cu_k.dtype == torch.int32 and type(max_q) is type(max_k) is int
    assert max_q == int(cu_q.diff().max()) and cu_q[0] == 0 and cu_q[-1] == len(q)
    assert enable_gqa == (q.shape[1] != k.shape[1])
    left, right = window_size
    rows = []
    for start, end in zip(cu_q.tolist(), cu_q.tolist()[1:], strict=False):
        apart = torch.arange(end - start)[:, None] - torch.arange(end - start)  # query behind key
        mask = (apart >= -right) & ((apart <= left) | torch.tensor(left < 0))
        document = (part[start:end].transpose(0, 1)[None] for part in (q, k, v))
        rows.append(scaled_dot_product_attention(*document, attn_mask=mask, scale=scale, enable_gqa=enable_gqa)[0])
    return torch.cat([row.transpose(0, 1) for row in rows])
