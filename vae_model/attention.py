"""Single-head self-attention over all positions: a table of back ends with one signature.

Every function takes q, k, v of shape (B, N, C), any float dtype, on one device, and returns
softmax(q k^T / sqrt(C)) v with the shape, dtype and device of v. They differ in memory and speed, never in meaning.
`max_bytes` bounds the score matrix of the sliced back end; the others ignore it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from .exact.streamed import streamed_attention

AttentionFunction = Callable[[Tensor, Tensor, Tensor], Tensor]

DEFAULT_SLICE_BYTES = 256 * 1024**2


def xformers_attention(q: Tensor, k: Tensor, v: Tensor, *, max_bytes: int | None = None) -> Tensor:
    """Memory-efficient attention of the optional xformers package; raises ImportError where it is absent."""
    import xformers.ops  # pyright: ignore

    return cast(Tensor, xformers.ops.memory_efficient_attention(q.contiguous(), k.contiguous(), v.contiguous()))  # pyright: ignore


def pytorch_attention(q: Tensor, k: Tensor, v: Tensor, *, max_bytes: int | None = None) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention with one head of width C."""
    q, k, v = (
        tokens.contiguous().unsqueeze(1) for tokens in (q, k, v)
    )  # strided inputs would fall to the N x N kernel
    return functional.scaled_dot_product_attention(q, k, v).squeeze(1)


def sliced_attention(q: Tensor, k: Tensor, v: Tensor, *, max_bytes: int | None = None) -> Tensor:
    """Plain attention over slices of the queries, each slice's scores within `max_bytes` (256 MiB unless told).

    Every token count slices (the last slice is shorter). 16-bit inputs are computed in float32 and rounded once.
    The smallest slice is one query of one image, so a bound below 3 * 4 * N bytes is exceeded by that much.
    """
    batch, tokens, width = q.shape
    compute = torch.float64 if q.dtype == torch.float64 else torch.float32
    bytes_per_query = 3 * k.shape[1] * compute.itemsize  # scores, their softmax, and one cast or workspace copy
    rows = max(1, (max_bytes or DEFAULT_SLICE_BYTES) // bytes_per_query)
    out = torch.empty((batch, tokens, v.shape[2]), dtype=v.dtype, device=v.device)
    for image in range(batch):
        keys = k[image].to(compute).transpose(0, 1)  # (C, N)
        values = v[image].to(compute)
        for start in range(0, tokens, rows):
            queries = q[image, start : start + rows].to(compute) * width**-0.5
            weights = torch.softmax(queries @ keys, dim=-1)  # (rows, N)
            out[image, start : start + rows] = weights @ values
            del weights  # else it lives on beside the next slice's scores
    return out


def streamed_by_blocks(
    q: Tensor, k: Tensor, v: Tensor, *, max_bytes: int | None = None, check: Callable[[], None] = lambda: None
) -> Tensor:
    """Online softmax over slices that stay in the cache; never more scores than one such slice.

    `check` is called between slices; it may raise to stop.
    """
    return streamed_attention(q, [(k, v)], check)


ATTENTION: dict[str, Callable[..., Tensor]] = {
    "xformers": xformers_attention,
    "pytorch": pytorch_attention,
    "sliced": sliced_attention,
    "streamed": streamed_by_blocks,
}
