"""What attention of one strip's queries takes beside them, all keys and all values: for the plan, before anything runs.

Where there is a fused kernel nothing of the scores stands in memory. Where there is none (Apple, Intel, DirectML, old
AMD, float64 on GPUs), queries are taken in slices whose scores are bounded, so that a plan can count on them.
"""

from __future__ import annotations

import torch

from ..kernels.profile import profile_of
from .streamed import streaming_bytes


def attention_bytes(
    tokens: int, keys: int, channels: int, dtype: torch.dtype, device_type: str, *, fused: bool, batch: int = 1
) -> int:
    """Bytes at the worst moment for `tokens` queries and `keys` keys of each of `batch` images."""
    profile = profile_of(device_type)
    result = batch * tokens * channels * dtype.itemsize
    streamed = streaming_bytes(batch * tokens, keys, channels, dtype, device_type) if profile.streamed_attention else 0
    sliced = 0 if fused else result + _sliced_bytes(tokens, keys, channels, dtype, profile.slice_bytes)
    return max(result, streamed, sliced)


def _sliced_bytes(tokens: int, keys: int, channels: int, dtype: torch.dtype, most: int) -> int:
    """Of one image after the other: casts of its keys and values, and a slice of queries with its scores."""
    compute = 8 if dtype == torch.float64 else 4
    casts = 0 if dtype.itemsize >= compute else 2 * keys * channels * compute
    rows = min(tokens, max(1, most // (3 * keys * compute)))
    return casts + rows * compute * (3 * keys + 3 * channels)
