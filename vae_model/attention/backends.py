"""Single-head self-attention over all positions: a table of back ends with one signature.

The functions of the table and those named as in the documents take q, k, v as tokens (B, N, C) or as images
(B, C, H, W), any float dtype, on one device, and return softmax(q k^T / sqrt(C)) v in the same form, with the dtype and
device of v; k and v may have other positions than q. ValueError, one line, for other shapes. They differ in memory and
speed, never in meaning. `max_bytes` bounds the score matrix of the sliced back end; the others ignore it.

Which one fits, and what to do when memory runs out, `model_management` knows; it says so by `set_choice` when it is
imported. Without it PyTorch's own is taken, and slices where that runs out of memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import InputError

AttentionFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
AttentionChoice = Callable[[str | None, Tensor, Tensor, Tensor], Tensor]
"""(a name in ATTENTION or None for the best, q, k, v as tokens) -> the result, whatever memory there is."""

DEFAULT_SLICE_BYTES = 256 * 1024**2


def takes_images(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function` of tokens (B, N, C), for images (B, C, H, W) as well; the result has the form of q."""

    @wraps(function)
    def either(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        _require_one_kind(q, k, v)
        images = q.ndim == k.ndim == v.ndim == 4
        tokens = [to_tokens(x) for x in (q, k, v)] if images else [q, k, v]
        if not _fit(*tokens):
            raise ValueError(
                "attention: expected q, k and v as (batch, positions, channels) or (batch, channels, height, width), "
                f"got {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}: reshape them"
            )
        result = function(*tokens, **options)
        return result.transpose(1, 2).reshape(*v.shape[:2], *q.shape[2:]) if images else result

    return either


def _require_one_kind(*given: Any) -> None:
    """InputError for what are no tensors of floats of one dtype: one back end would convert them, another not run."""
    kinds = [str(x.dtype) if isinstance(x, Tensor) else "nothing" if x is None else type(x).__name__ for x in given]
    if not all(isinstance(x, Tensor) and x.is_floating_point() and x.dtype == given[0].dtype for x in given):
        raise InputError(f"attention: expected q, k and v of one float dtype, got {', '.join(kinds)}: convert them")


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H*W, C), a view."""
    return x.flatten(2).transpose(1, 2)


def _fit(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether these are queries, keys and values of one attention, (B, n, C), (B, N, C) and (B, N, D)."""
    three = q.ndim == k.ndim == v.ndim == 3
    return three and q.shape[0] == k.shape[0] and q.shape[2] == k.shape[2] and k.shape[:2] == v.shape[:2]


@takes_images
def _xformers(q: Tensor, k: Tensor, v: Tensor, *, max_bytes: int | None = None) -> Tensor:
    """Memory-efficient attention of the optional xformers package; raises ImportError where it is absent."""
    try:
        import xformers.ops  # pyright: ignore
    except ImportError as error:
        raise ImportError(
            "xformers_attention: expected the package xformers, found none: install it or take pytorch_attention"
        ) from error
    return cast(Tensor, xformers.ops.memory_efficient_attention(q.contiguous(), k.contiguous(), v.contiguous()))  # pyright: ignore


@takes_images
def _pytorch(q: Tensor, k: Tensor, v: Tensor, *, max_bytes: int | None = None) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention with one head of width C."""
    # Strided inputs would fall to the N x N kernel.
    q, k, v = (tokens.contiguous().unsqueeze(1) for tokens in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v).squeeze(1)


@takes_images
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


@takes_images
def streamed_by_blocks(
    q: Tensor, k: Tensor, v: Tensor, *, max_bytes: int | None = None, check: Callable[[], None] = lambda: None
) -> Tensor:
    """Online softmax over slices that stay in the cache; never more scores than one such slice.

    `check` is called between slices; it may raise to stop.
    """
    from .streamed import streamed_attention  # layers that only name their attention load no kernels

    return streamed_attention(q, [(k, v)], check)


ATTENTION: dict[str, Callable[..., Tensor]] = {
    "xformers": _xformers,
    "pytorch": _pytorch,
    "sliced": sliced_attention,
    "streamed": streamed_by_blocks,
}
"""One back end each, which raises its own out-of-memory error."""


def _by_itself(name: str | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The choice where nobody knows better: PyTorch's own or the named one, then slices."""
    try:
        return ATTENTION[name or "pytorch"](q, k, v)
    except (RuntimeError, MemoryError) as error:
        unsupported, ran_out = isinstance(error, NotImplementedError), isinstance(error, MemoryError)
        if not (unsupported or ran_out or "memory" in str(error)):
            raise
    # Outside the except block: its traceback would keep the failed tensors alive.
    return sliced_attention(q, k, v)


_choice: AttentionChoice = _by_itself


def set_choice(choice: AttentionChoice) -> AttentionChoice:
    """Let `choice` decide for every attention that has no back end of its own; the one that decided before."""
    global _choice
    before, _choice = _choice, choice
    return before


@takes_images
def chosen_attention(q: Tensor, k: Tensor, v: Tensor, *, max_bytes: int | None = None) -> Tensor:
    """By the back end that fits here, asked anew with every call: what attention layers do unless told otherwise."""
    return _choice(None, q, k, v)


@takes_images
def pytorch_attention(q: Tensor, k: Tensor, v: Tensor, *, max_bytes: int | None = None) -> Tensor:
    """PyTorch's scaled_dot_product_attention with one head; slices where memory runs out."""
    return _choice("pytorch", q, k, v)


@takes_images
def xformers_attention(q: Tensor, k: Tensor, v: Tensor, *, max_bytes: int | None = None) -> Tensor:
    """The xformers package's; slices where it does not take the call or memory runs out. ImportError without it."""
    return _choice("xformers", q, k, v)


@takes_images
def normal_attention(q: Tensor, k: Tensor, v: Tensor, *, max_bytes: int | None = None) -> Tensor:
    """Slices of the queries that fit into the memory there is, smaller ones where it runs out."""
    return _choice("sliced", q, k, v)


def slice_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`normal_attention` in the document's inner form: q (B, n, C), k (B, C, N), v (B, D, N) -> (B, D, n)."""
    _require_one_kind(q, k, v)
    if not (q.ndim == k.ndim == v.ndim == 3 and _fit(q, k.mT, v.mT)):
        raise ValueError(
            "slice_attention: expected q (batch, positions, channels), k and v (batch, channels, positions), "
            f"got {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}: transpose them, or call normal_attention"
        )
    return _choice("sliced", q, k.mT, v.mT).mT
