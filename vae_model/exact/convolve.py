"""Convolutions of one strip: the borders of the image, and enlargement as four small convolutions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .context import Context
from .spec import Conv


def border_source(mode: str, row: int, height: int) -> int | None:
    """The row whose values stand in row `row` outside an image of `height` rows; None for zeros."""
    if mode == "zeros":
        return None
    if mode == "replicate":
        return 0 if row < 0 else height - 1
    if mode == "reflect":
        return -row if row < 0 else 2 * (height - 1) - row
    return row % height


def fill_rows(window: Tensor, first: int, height: int, mode: str) -> None:
    """Fill the rows of a window (rows first, first + 1, ... of an image) that lie outside 0..height."""
    for index in (*range(min(0, first), 0), *range(height, first + window.shape[2])):
        source = border_source(mode, index, height)
        target = window[:, :, index - first]
        if source is None:
            target.zero_()
        else:
            target.copy_(window[:, :, source - first])


def fill_columns(window: Tensor, before: int, width: int, mode: str) -> None:
    """Fill the columns left of column `before` and right of the `width` that follow."""
    for index in (*range(-before, 0), *range(width, window.shape[3] - before)):
        source = border_source(mode, index, width)
        target = window[..., before + index]
        if source is None:
            target.zero_()
        else:
            target.copy_(window[..., before + source])


def padded_columns(conv: Conv) -> tuple[int, int]:
    """Columns to write into the window, left and right; none where the convolution itself adds equal zeros."""
    if conv.mode == "zeros" and conv.pad_before == conv.pad_after:
        return 0, 0
    return conv.pad_before, conv.pad_after


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


def fold_bytes(conv: Conv, itemsize: int) -> int:
    """Bytes of the sums while one kernel is made."""
    return conv.out_channels * conv.in_channels * max(4, itemsize) * 19


def enlarge_window(
    context: Context, window: Tensor, kernels: list[list[Tensor]], bias: Tensor | None, top: int, bottom: int, pad: int
) -> Tensor:
    """Rows top..bottom of the enlarged plane.

    Args:    window: (B, C, n, W) or, with its border columns, (B, C, n, W + 2): the source from row (top - 1) // 2 on.
             kernels: [row parity][column parity], each (out, in, 2, 2). pad: zero columns to add on both sides, 1 or 0.
    Returns: (B, out, bottom - top, 2 * W).
    """
    first, width = (top - 1) // 2, window.shape[3] - 2 + 2 * pad
    out = context.empty(kernels[0][0].shape[0], bottom - top, 2 * width)
    for r in (0, 1):
        start = top + (r - top) % 2  # the first row of this parity
        rows = len(range(start, bottom, 2))
        if rows == 0:
            continue
        source = start // 2 - 1 + r - first
        part = window[:, :, source : source + rows + 1]
        for c in (0, 1):
            # All W + 1 columns are computed: cheaper than cutting one off the input, which would copy it.
            result = functional.conv2d(part, kernels[r][c], bias, padding=(0, pad))
            out[:, :, start - top :: 2, c::2] = result[..., c : c + width]
            del result
    return out
