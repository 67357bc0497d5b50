"""Weights of 3x3 convolutions as the kernels of tiles.c read them."""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor

from .filters import Filters

_TAPS = 9


def pack_weight(weight: Tensor, filters: Filters, panel: int, depth: int) -> Tensor:
    """The filters of (out, in, 3, 3), computed in float64 and rounded once, in the order in which they are read.

    That is point by point, of a point `depth` channels of `in` at a time, of these filter by filter `panel` channels of
    `out` at a time: (depth, panel).

    Returns: flat, of planes * in * out elements.
    """
    out_channels, in_channels = weight.shape[:2]
    planes = len(filters.taps)
    result = torch.empty(planes * out_channels * in_channels, dtype=weight.dtype)
    for number, some in enumerate(weight.split(panel)):
        made = filters.taps @ some.permute(2, 3, 1, 0).double().reshape(_TAPS, -1)
        _place(made.view(planes, in_channels, panel), number, out_channels // panel, filters, depth, result)
        del made
    return result


def _place(made: Tensor, number: int, panels: int, filters: Filters, depth: int, result: Tensor) -> None:
    """Write the filters (planes, in, panel) of one panel to their places."""
    in_channels, panel = made.shape[1:]
    size, plane = in_channels * panel * panels, 0
    for count, points in [(count, len(list(points))) for count, points in groupby(filters.counts) if count]:
        planes = slice(plane, plane + points * count)
        values = made[planes].view(points, count, in_channels, panel)
        target = result[planes.start * size : planes.stop * size].view(points, in_channels, count * panels * panel)
        for first in range(0, in_channels, depth):
            last = min(in_channels, first + depth)
            part = target[:, first:last].view(points, count, panels, last - first, panel)
            part[:, :, number] = values[:, :, first:last]
        plane = planes.stop


def packing_bytes(planes: int, panel: int, in_channels: int) -> int:
    """Bytes that `pack_weight` takes beside its result, those of one panel in float64."""
    return 8 * (planes + 2 * _TAPS) * panel * in_channels
