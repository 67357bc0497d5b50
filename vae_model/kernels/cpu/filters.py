"""The filters that the kernels of tiles.c take, as sums of a 3x3 convolution's taps, point by point.

A convolution has one filter at each of the 36 points. Behind nearest x2 the even results along a row are a filter
(a, b + c, 0) of the source and the odd ones (0, a + b, c), where (a, b, c) are the convolution's taps. Winograd's
F(4, 3) takes six products for four results of either. At the point 1 both filters are the same, at 0 the odd one is
nothing and at infinity the even one: nine products for eight results. For rows of results that begin with an odd one,
and so with the source a row further down, the odd filter is (a + b, c, 0); both then end in 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..winograd import TAPS

_SAME = torch.eye(3, dtype=torch.float64)
_EVEN = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0]], dtype=torch.float64)
_ODD = torch.tensor([[0, 0, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.float64)
_ODD_FIRST = torch.tensor([[1, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=torch.float64)

_Points = Sequence[Sequence[Tensor]]
"""Filters at the points 0, 1, -1, 1/2, -2 and infinity."""
_PLAIN: _Points = [[_SAME]] * 6
_BEGINS_EVEN: _Points = [[_EVEN], [_EVEN], *[[_EVEN, _ODD]] * 3, [_ODD]]
_BEGINS_ODD: _Points = [[_EVEN, _ODD_FIRST], [_EVEN], *[[_EVEN, _ODD_FIRST]] * 3, []]


class Filters(NamedTuple):
    """What is multiplied at every point."""

    kind: int
    """As tiles.c calls it."""
    taps: Tensor
    """(planes, 9), float64: each filter as a sum of the nine taps, in the order of their points."""
    counts: Sequence[int]
    """How many there are at each of the 36 points."""


def _filters(kind: int, rows: _Points, columns: _Points) -> Filters:
    taps: list[Tensor] = []
    counts: list[int] = []
    for row_point, row_filters in zip(TAPS, rows, strict=True):
        for column_point, column_filters in zip(TAPS, columns, strict=True):
            counts.append(len(row_filters) * len(column_filters))
            taps += [torch.kron(row_point @ r, column_point @ c) for r in row_filters for c in column_filters]
    return Filters(kind, torch.stack(taps), counts)


CONVOLVE = _filters(0, _PLAIN, _PLAIN)
UPSAMPLE_EVEN = _filters(1, _BEGINS_EVEN, _BEGINS_EVEN)
"""Rows of tiles begin with an even row of results."""
UPSAMPLE_ODD = _filters(2, _BEGINS_ODD, _BEGINS_EVEN)
"""Rows of tiles begin with an odd one."""
