"""Attention whose keys and values come block by block, from wherever they wait; any number of tokens.

The softmax is merged over the blocks in float32 by running maximum and sum (Milakov and Gimelshein 2018; Rabe and
Staats 2021): exact up to rounding, and never more scores in memory than a slice of queries has with a slice of keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..kernels.products import Product, best_product
from .streamed_large import LargeStreamedAttention, large_bytes, runs_large

SCORE_BYTES = 4 * 1024**2
"""Scores of a slice: as many as stay in a CPU's cache."""
_LOG2_E = math.log2(math.e)
"""Powers of 2 are made faster than those of e; the queries' scale takes the factor in."""


class StreamedAttention:
    """softmax(q k^T / sqrt(C)) v of some queries, fed with the blocks of k and v in any order."""

    def __init__(self, q: Tensor, values: int, max_bytes: int = SCORE_BYTES) -> None:
        """q: (B, n, C), any float dtype. `values`: channels of v."""
        self.dtype = q.dtype
        compute = torch.float64 if q.dtype == torch.float64 else torch.float32
        self._q = q.to(compute) * (q.shape[2] ** -0.5 * _LOG2_E)
        self._slice = _slice_rows(compute, max_bytes)
        shape = (*q.shape[:2], values)
        self._sum = torch.zeros(shape, dtype=compute, device=q.device)
        self._weight = torch.zeros((*q.shape[:2], 1), dtype=compute, device=q.device)
        self._largest = torch.full_like(self._weight, -torch.inf)

    def add(self, k: Tensor, v: Tensor, check: Callable[[], None] = lambda: None) -> None:
        """Take in a block: k (B, m, C) and v (B, m, D). `check` is called between slices; it may raise."""
        multiply = best_product(k.device.type, self._q.dtype)
        for keys, values in zip(k.split(self._slice, 1), v.split(self._slice, 1), strict=True):
            keys, turned = keys.to(self._q.dtype), values.to(self._q.dtype).transpose(1, 2).contiguous()
            for start in range(0, self._q.shape[1], self._slice):
                check()
                for image in range(k.shape[0]):
                    self._merge(image, slice(start, start + self._slice), keys[image], turned[image], multiply)

    def _merge(self, image: int, rows: slice, keys: Tensor, values: Tensor, multiply: Product) -> None:
        """One slice of queries with one slice of keys (m, C) and values (D, m)."""
        largest = self._largest[image, rows]
        scores = multiply(self._q[image, rows], keys, None)  # (rows, m)
        new = torch.maximum(largest, scores.amax(dim=1, keepdim=True))
        shrink = torch.exp2(largest - new)
        weights = scores.sub_(new).exp2_()
        self._weight[image, rows] = self._weight[image, rows] * shrink + weights.sum(dim=1, keepdim=True)
        self._sum[image, rows] = self._sum[image, rows].mul_(shrink).add_(multiply(weights, values, None))
        self._largest[image, rows] = new

    def result(self) -> Tensor:
        """(B, n, D) in the dtype of q, once every block was added."""
        return self._sum.div_(self._weight).to(self.dtype)


def begin(q: Tensor, values: int) -> StreamedAttention | LargeStreamedAttention:
    """The method for these queries (B, n, C), which have met no key yet. `values`: channels of v."""
    return (LargeStreamedAttention if runs_large(q.device.type, q.dtype) else StreamedAttention)(q, values)


def streamed_attention(
    q: Tensor, blocks: Iterable[tuple[Tensor, Tensor]], check: Callable[[], None] = lambda: None
) -> Tensor:
    """q (B, n, C) over blocks of keys and values (B, m, C) -> (B, n, C)."""
    attention: StreamedAttention | LargeStreamedAttention | None = None
    for k, v in blocks:
        attention = attention or begin(q, v.shape[2])
        attention.add(k, v, check)
    if attention is None:
        raise ValueError("attention: expected at least one block of keys and values, got none")
    return attention.result()


def _slice_rows(compute: torch.dtype, max_bytes: int = SCORE_BYTES) -> int:
    """Rows and columns of a slice of scores: square ones move the least memory."""
    return max(1, int((max_bytes // compute.itemsize) ** 0.5))


def streaming_bytes(tokens: int, keys: int, channels: int, dtype: torch.dtype, device_type: str = "cpu") -> int:
    """Bytes that attention of so many queries holds beside them and the blocks of so many keys."""
    if runs_large(device_type, dtype):
        return large_bytes(tokens, keys, channels, dtype)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    rows, columns = (min(count, _slice_rows(compute)) for count in (tokens, keys))
    casts = 2 if dtype.itemsize >= 4 else 3
    return (2 * tokens * channels + rows * columns + (casts * columns + rows) * channels) * compute.itemsize


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1x1 convolution of tokens: (B, n, C) with (out, C, 1, 1) -> (B, n, out)."""
    return best_product(x.device.type, x.dtype)(x, weight.flatten(1), bias)
