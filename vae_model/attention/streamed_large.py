"""Streamed attention for GPUs: large slices, products in the inputs' own format with sums in float32.

Fused attention kernels are made for narrow heads; for one as wide as a VAE's a GPU multiplies large matrices faster. So
the scores of a slice are written down, turned into weights by one kernel, and multiplied with the values. Scores and
sums are float32; weights are rounded to the inputs' format, as fused kernels round them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from ..kernels.cuda.strips import softmax_part
from ..kernels.profile import profile_of

SLICE_TOKENS = 4096
"""Queries and keys of a slice: its products fill a large GPU, its scores are 64 MiB."""
_LOG2_E = math.log2(math.e)
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def runs_large(device_type: str, dtype: torch.dtype) -> bool:
    """Whether attention is streamed by this method; tensors without data stand for those of a GPU."""
    return (
        profile_of(device_type).large_attention
        and dtype in _DTYPES
        and (dtype == torch.float32 or _has_wide_products())
    )


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


class LargeStreamedAttention:
    """softmax(q k^T / sqrt(C)) v of some queries, fed with the blocks of k and v in any order."""

    def __init__(self, q: Tensor, values: int, slice_tokens: int = SLICE_TOKENS) -> None:
        """q: (B, n, C), float32 or 16 bits. `values`: channels of v."""
        self._q, self._slice = q, slice_tokens
        self._scale = q.shape[2] ** -0.5 * _LOG2_E
        self._sum = torch.zeros((*q.shape[:2], values), dtype=torch.float32, device=q.device)
        self._weight, self._worth = (
            torch.zeros_like(self._sum[..., 0], memory_format=torch.contiguous_format) for _ in range(2)
        )
        self._largest = torch.full_like(self._weight, -torch.inf)

    def add(self, k: Tensor, v: Tensor, check: Callable[[], None] = lambda: None) -> None:
        """Take in a block: k (B, m, C) and v (B, m, D). `check` is called between slices; it may raise."""
        for keys, values in zip(k.split(self._slice, 1), v.split(self._slice, 1), strict=True):
            for start in range(0, self._q.shape[1], self._slice):
                check()
                for image in range(k.shape[0]):
                    self._merge(image, slice(start, start + self._slice), keys[image], values[image])

    def _merge(self, image: int, rows: slice, keys: Tensor, values: Tensor) -> None:
        """One slice of queries with one slice of keys (m, C) and values (m, D)."""
        scores = _product(self._q[image, rows], keys.t())  # (rows, m)
        weights = scores if keys.dtype == torch.float32 else torch.empty_like(scores, dtype=keys.dtype)
        state = (self._largest[image, rows], self._weight[image, rows], self._worth[image, rows])
        if not softmax_part(scores, weights, state, self._scale):
            _softmax_part(scores, weights, state, self._scale)
        del scores
        product, sums = _product(weights, values), self._sum[image, rows]
        torch.addcmul(product, sums, state[2][:, None], out=sums)

    def result(self) -> Tensor:
        """(B, n, D) in the dtype of q, once every block was added."""
        return self._sum.div_(self._weight[..., None]).to(self._q.dtype)


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


def large_bytes(tokens: int, keys: int, channels: int, dtype: torch.dtype) -> int:
    """Bytes that attention of so many queries holds beside them and the blocks of so many keys."""
    rows, columns = min(tokens, SLICE_TOKENS), min(keys, SLICE_TOKENS)
    weights = 0 if dtype == torch.float32 else rows * columns * dtype.itemsize
    scores, product, result = 4 * rows * columns, 4 * rows * channels, tokens * channels * dtype.itemsize
    product += scores if dtype == torch.float32 else 0
    return 4 * tokens * (channels + 3) + max(weights + max(scores, product), result)
