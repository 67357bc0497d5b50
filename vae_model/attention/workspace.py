"""What attention of one strip's queries takes beside them, all keys and all values: for the plan, before anything runs.

Where there is a fused kernel nothing of the scores stands in memory. Where there is none (Apple, Intel, DirectML, old
AMD, float64 on GPUs), queries are taken in slices whose scores are bounded, so that a plan can count on them.
"""

from __future__ import annotations

import torch

from .streamed import streaming_bytes

_SLICE_BYTES = {"cpu": 4 * 1024**2}
"""Scores of a slice of queries: as many as stay in a processor's cache."""
_GPU_SLICE_BYTES = 64 * 1024**2
"""Enough to fill a GPU; more would only be taken from what strips need."""
_STREAMED = ("cpu", "cuda")
"""Where the streamed back end may be taken as well, if it has been timed and is faster."""


def slice_bytes(device_type: str) -> int:
    """Bytes of scores, with their copies, that sliced attention may hold at once in an exact run."""
    return _SLICE_BYTES.get(device_type, _GPU_SLICE_BYTES)


def attention_bytes(
    tokens: int, keys: int, channels: int, dtype: torch.dtype, device_type: str, *, fused: bool, batch: int = 1
) -> int:
    """Bytes at the worst moment for `tokens` queries and `keys` keys of each of `batch` images."""
    result = batch * tokens * channels * dtype.itemsize
    streamed = streaming_bytes(batch * tokens, keys, channels, dtype, device_type) if device_type in _STREAMED else 0
    sliced = 0 if fused else result + _sliced_bytes(tokens, keys, channels, dtype, slice_bytes(device_type))
    return max(result, streamed, sliced)


def _sliced_bytes(tokens: int, keys: int, channels: int, dtype: torch.dtype, most: int) -> int:
    """Of one image after the other: casts of its keys and values, and a slice of queries with its scores."""
    compute = 8 if dtype == torch.float64 else 4
    casts = 0 if dtype.itemsize >= compute else 2 * keys * channels * compute
    rows = min(tokens, max(1, most // (3 * keys * compute)))
    return casts + rows * compute * (3 * keys + 3 * channels)
