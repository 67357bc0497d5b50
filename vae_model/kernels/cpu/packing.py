"""Weights of 3x3 convolutions as the kernels of tiles.c read them."""

from __future__ import annotations

from itertools import groupby

from torch import Tensor

from .filters import Filters

_TAPS = 9


def pack_weight(weight: Tensor, filters: Filters, panel: int, depth: int, result: Tensor) -> None:
    """Write the filters of (out, in, 3, 3), computed in float64 and rounded once, in the order in which they are read.

    That is point by point, of a point `depth` channels of `in` at a time, of these filter by filter `panel` channels of
    `out` at a time: (depth, panel).

    Args:    result: flat, of planes * in * out elements.
    """
    in_channels, planes = weight.shape[1], len(filters.taps)
    for first in range(0, in_channels, depth):
        for number, some in enumerate(weight[:, first : first + depth].split(panel)):
            made = filters.taps @ some.permute(2, 3, 1, 0).double().reshape(_TAPS, -1)
            _place(made.view(planes, -1, panel), number, first, filters, result.view(planes, in_channels, -1))
            del made


def _place(made: Tensor, number: int, first: int, filters: Filters, result: Tensor) -> None:
    """Write the filters (planes, some of in, panel) of one panel, from channel `first` on, to (planes, in, out)."""
    channels, panel = made.shape[1:]
    in_channels, out_channels = result.shape[1:]
    plane = 0
    for count, points in [(count, len(list(points))) for count, points in groupby(filters.counts) if count]:
        planes = slice(plane, plane + points * count)
        values = made[planes].view(points, count, channels, panel)
        target = result[planes].view(points, in_channels, count * out_channels)[:, first : first + channels]
        target.view(points, count, out_channels // panel, channels, panel)[:, :, number] = values
        plane = planes.stop


def packing_bytes(planes: int, panel: int, channels: int) -> int:
    """Bytes that `pack_weight` takes beside its result: those of one panel, of at most `depth` channels, in float64."""
    return 8 * (planes + 2 * _TAPS) * panel * channels
