"""The borders of the image in a strip's window."""

from __future__ import annotations

from torch import Tensor


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
