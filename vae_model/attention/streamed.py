"""Attention whose keys and values come block by block, from wherever they wait; any number of tokens. And what it takes
beside queries, keys and values, streamed or not: for the plan, before anything runs.

The softmax is merged over the blocks in float32 by running maximum and sum (Milakov and Gimelshein 2018; Rabe and
Staats 2021): exact up to rounding, and never more scores in memory than a slice of queries has with a slice of keys.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import cache

import torch
from torch import Tensor

from ..kernels.cuda.strips import softmax_part
from ..kernels.products import best_product
from ..kernels.profile import profile_of

SCORE_BYTES = 4 * 1024**2
"""Scores of a slice: as many as stay in a CPU's cache."""
SLICE_TOKENS = 4096
"""Queries and keys of a slice on a GPU: its products fill a large one, its scores are 64 MiB."""
_LOG2_E = math.log2(math.e)
"""Powers of 2 are made faster than those of e; the scale of queries or scores takes the factor in."""


class _Streamed(ABC):
    """softmax(q k^T / sqrt(C)) v of some queries, fed with the blocks of k and v in any order."""

    def __init__(self, q: Tensor, values: int, slice_tokens: int, compute: torch.dtype, dtype: torch.dtype) -> None:
        self._q, self._slice, self._dtype = q, slice_tokens, dtype
        self._sum = torch.zeros((*q.shape[:2], values), dtype=compute, device=q.device)
        self._weight = torch.zeros((*q.shape[:2], 1), dtype=compute, device=q.device)
        self._largest = torch.full_like(self._weight, -torch.inf)

    def add(self, k: Tensor, v: Tensor, check: Callable[[], None] = lambda: None) -> None:
        """Take in a block: k (B, m, C) and v (B, m, D). `check` is called between slices; it may raise."""
        for keys, values in zip(k.split(self._slice, 1), v.split(self._slice, 1), strict=True):
            keys, values = self._prepared(keys, values)
            for start in range(0, self._q.shape[1], self._slice):
                check()
                for image in range(k.shape[0]):
                    self._merge(image, slice(start, start + self._slice), keys[image], values[image])

    def _prepared(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Slices of a block as `_merge` takes them."""
        return keys, values

    @abstractmethod
    def _merge(self, image: int, rows: slice, keys: Tensor, values: Tensor) -> None:
        """One slice of queries with one slice of keys and values."""

    def result(self) -> Tensor:
        """(B, n, D) in the dtype of q, once every block was added."""
        return self._sum.div_(self._weight).to(self._dtype)


class StreamedAttention(_Streamed):
    """By small slices, all in float32 or float64: for CPUs."""

    def __init__(self, q: Tensor, values: int, max_bytes: int = SCORE_BYTES) -> None:
        """q: (B, n, C), any float dtype. `values`: channels of v."""
        compute = torch.float64 if q.dtype == torch.float64 else torch.float32
        scaled = q.to(compute) * (q.shape[2] ** -0.5 * _LOG2_E)
        super().__init__(scaled, values, _slice_rows(compute, max_bytes), compute, q.dtype)
        self._multiply = best_product(q.device.type, compute)

    def _prepared(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return keys.to(self._q.dtype), values.to(self._q.dtype).transpose(1, 2).contiguous()  # (B, m, C), (B, D, m)

    def _merge(self, image: int, rows: slice, keys: Tensor, values: Tensor) -> None:
        largest = self._largest[image, rows]
        scores = self._multiply(self._q[image, rows], keys, None)  # (rows, m)
        new = torch.maximum(largest, scores.amax(dim=1, keepdim=True))
        shrink = torch.exp2(largest - new)
        weights = scores.sub_(new).exp2_()
        self._weight[image, rows] = self._weight[image, rows] * shrink + weights.sum(dim=1, keepdim=True)
        self._sum[image, rows] = self._sum[image, rows].mul_(shrink).add_(self._multiply(weights, values, None))
        self._largest[image, rows] = new


class LargeStreamedAttention(_Streamed):
    """By large slices, products in the inputs' own format with sums in float32: for GPUs.

    Fused attention kernels are made for narrow heads; for one as wide as a VAE's a GPU multiplies large matrices
    faster. So the scores of a slice are written down, turned into weights by one kernel, and multiplied with the
    values. Scores and sums are float32; weights are rounded to the inputs' format, as fused kernels round them.
    """

    def __init__(self, q: Tensor, values: int, slice_tokens: int = SLICE_TOKENS) -> None:
        """q: (B, n, C), float32 or 16 bits. `values`: channels of v."""
        super().__init__(q, values, slice_tokens, torch.float32, q.dtype)
        self._scale = q.shape[2] ** -0.5 * _LOG2_E
        self._worth = torch.zeros_like(self._weight)

    def _merge(self, image: int, rows: slice, keys: Tensor, values: Tensor) -> None:
        scores = _product(self._q[image, rows], keys.t())  # (rows, m)
        weights = scores if keys.dtype == torch.float32 else torch.empty_like(scores, dtype=keys.dtype)
        state = (self._largest[image, rows, 0], self._weight[image, rows, 0], self._worth[image, rows, 0])  # (rows,)
        if not softmax_part(scores, weights, state, self._scale):
            _softmax_part(scores, weights, state, self._scale)
        del scores
        product, sums = _product(weights, values), self._sum[image, rows]
        torch.addcmul(product, sums, state[2][:, None], out=sums)


def runs_large(device_type: str, dtype: torch.dtype) -> bool:
    """Whether attention is streamed by large slices; tensors without data stand for those of a GPU."""
    if not profile_of(device_type).large_attention:
        return False
    return dtype == torch.float32 or (dtype in (torch.float16, torch.bfloat16) and _has_wide_products())


@cache
def _has_wide_products() -> bool:
    """Whether this PyTorch multiplies 16-bit matrices into a float32 one; plans are made without a GPU, too."""
    if not torch.cuda.is_available():
        return True
    a = torch.ones(16, 16, dtype=torch.float16, device="cuda")
    try:
        return torch.mm(a, a, out_dtype=torch.float32).dtype == torch.float32
    except (TypeError, RuntimeError, NotImplementedError):
        return False


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32."""
    if a.dtype == torch.float32:
        return torch.mm(a, b)
    if a.is_meta:
        return torch.empty((a.shape[0], b.shape[1]), dtype=torch.float32, device=a.device)
    return torch.mm(a, b, out_dtype=torch.float32)


def _softmax_part(scores: Tensor, weights: Tensor, state: tuple[Tensor, Tensor, Tensor], scale: float) -> None:
    """What the kernel of this name does."""
    largest, weight, worth = state
    scores.mul_(scale)
    new = torch.maximum(largest, scores.amax(dim=1))
    worth.copy_(torch.exp2(largest - new))
    scores.sub_(new[:, None]).exp2_()
    weight.mul_(worth).add_(scores.sum(dim=1))
    largest.copy_(new)
    if weights is not scores:
        weights.copy_(scores)


def begin(q: Tensor, values: int) -> StreamedAttention | LargeStreamedAttention:
    """The method for these queries (B, n, C), which have met no key yet. `values`: channels of v."""
    return (LargeStreamedAttention if runs_large(q.device.type, q.dtype) else StreamedAttention)(q, values)


def streamed_attention(
    q: Tensor, blocks: Iterable[tuple[Tensor, Tensor]], check: Callable[[], None] = lambda: None
) -> Tensor:
    """q (B, n, C) over blocks of keys and values (B, m, C) -> (B, n, C)."""
    attention: _Streamed | None = None
    for k, v in blocks:
        attention = attention or begin(q, v.shape[2])
        attention.add(k, v, check)
    if attention is None:
        raise ValueError("attention: expected at least one block of keys and values, got none")
    return attention.result()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1x1 convolution of tokens: (B, n, C) with (out, C, 1, 1) -> (B, n, out)."""
    return best_product(x.device.type, x.dtype)(x, weight.flatten(1), bias)


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


def large_bytes(tokens: int, keys: int, channels: int, dtype: torch.dtype) -> int:
    """The same of large slices."""
    rows, columns = min(tokens, SLICE_TOKENS), min(keys, SLICE_TOKENS)
    weights = 0 if dtype == torch.float32 else rows * columns * dtype.itemsize
    scores, product, result = 4 * rows * columns, 4 * rows * channels, tokens * channels * dtype.itemsize
    product += scores if dtype == torch.float32 else 0
    return 4 * tokens * (channels + 3) + max(weights + max(scores, product), result)


def attention_bytes(
    tokens: int, keys: int, channels: int, dtype: torch.dtype, device_type: str, *, fused: bool, batch: int = 1
) -> int:
    """Bytes at the worst moment for `tokens` queries and `keys` keys of each of `batch` images, streamed or not.

    Where there is a fused kernel nothing of the scores stands in memory. Where there is none (Apple, Intel, DirectML,
    old AMD, float64 on GPUs), queries are taken in slices whose scores are bounded, so that a plan can count on them.
    """
    profile = profile_of(device_type)
    result = batch * tokens * channels * dtype.itemsize
    streamed = streaming_bytes(batch * tokens, keys, channels, dtype, device_type) if profile.streamed_attention else 0
    if fused:
        return max(result, streamed)
    # Of one image after the other: casts of its keys and values, and a slice of queries with its scores.
    compute = 8 if dtype == torch.float64 else 4
    casts = 0 if dtype.itemsize >= compute else 2 * keys * channels * compute
    rows = min(tokens, max(1, profile.slice_bytes // (3 * keys * compute)))
    return max(streamed, result + casts + rows * compute * (3 * keys + 3 * channels))
