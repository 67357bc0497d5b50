"""Nearest x2 and then a 3x3 convolution as four 2x2 kernels on the small plane."""

from __future__ import annotations

import torch
from torch import Tensor

_HALVES = (((0,), (1, 2)), ((0, 1), (2,)))
"""By parity of the result's row (or column): which of the three taps fall on its first and on its second source row."""


def fold_upsample(weight: Tensor, row: int, column: int) -> Tensor:
    """The 2x2 kernel that makes the results of one parity of row and column.

    Nearest x2 followed by the 3x3 convolution `weight` (out, in, 3, 3) equals four such kernels on the small plane, one
    for each parity: (out, in, 2, 2). Summed in float32 or better, then rounded to the dtype of `weight` once.
    """
    w = weight if weight.dtype == torch.float64 else weight.float()
    w = torch.stack([w[:, :, taps].sum(dim=2) for taps in _HALVES[row]], dim=2)
    return torch.stack([w[..., taps].sum(dim=3) for taps in _HALVES[column]], dim=3).to(weight.dtype)


def fold_bytes(in_channels: int, out_channels: int, itemsize: int) -> int:
    """Bytes of the sums while one kernel is made."""
    return out_channels * in_channels * max(4, itemsize) * 19
