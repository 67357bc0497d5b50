"""3x3 convolutions of stride 1 with a quarter of the multiplications, for processors, in float32.

Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray 2016, arXiv 1509.09308): tiles of 6x6 values are transformed,
multiplied by the transformed weights as 36 matrix products, and transformed back into 4x4 results. With the points
0, 1, -1, 1/2, -2 and infinity (Barabasz et al. 2020, arXiv 1803.10986) the error stays near that of the plain sum,
which has nine times as many terms: 1.3 times as large for 512 channels, 2.3 times for 128. The transforms along rows
and columns are matrix products, too, so everything runs at the speed of the library behind `torch.mm`.

16-bit values would be rounded between the steps, and GPU libraries choose such methods by themselves: neither is here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .context import Context
from .spec import Conv

TILE = 4
"""Rows and columns of results that are made at once."""
_POINTS = TILE + 2
CHUNK_BYTES = 20 * 2**20
"""Intermediate values of so many bytes at a time: what a processor's last cache holds; more gained nothing."""
LEAST_CHANNELS = 96
LEAST_WIDTH = 32
"""Below these the transforms, or the columns that fill up a tile, cost more than is saved."""
_WEIGHT_CHANNELS = 16
"""Weights are transformed in float64, those of so many results at a time."""

# Rows of the data's transform are scaled to numbers that float32 holds exactly; the weights' transform makes up for it.
_DATA = torch.tensor(
    [
        [1, -1.5, -2, 1.5, 1, 0],
        [0, -2, 1, 5, 2, 0],
        [0, -2, 5, -1, -2, 0],
        [0, 2, 1, -2, -1, 0],
        [0, 1, -2, -1, 2, 0],
        [0, 1, -1.5, -2, 1.5, 1],
    ],
    dtype=torch.float64,
)
_RESULT = torch.tensor(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 0.5, -2, 0], [0, 1, 1, 0.25, 4, 0], [0, 1, -1, 0.125, -8, 1]], dtype=torch.float64
)
TAPS = torch.tensor(
    [[1, 0, 0], [1, 1, 1], [1, -1, 1], [1, 0.5, 0.25], [1, -2, 4], [0, 0, 1]], dtype=torch.float64
) * torch.tensor([[1], [1 / 6], [1 / 6], [16 / 15], [1 / 30], [1]], dtype=torch.float64)


def pays(context: Context, conv: Conv, width: int) -> bool:
    """Whether this convolution of planes of that width can run so, and gains by it."""
    return (
        context.dtype == torch.float32
        and context.device.type == "cpu"
        and context.channels_last
        and (conv.kernel, conv.stride, conv.pad_before, conv.pad_after) == (3, 1, 1, 1)
        and min(conv.in_channels, conv.out_channels) >= LEAST_CHANNELS
        and width >= LEAST_WIDTH
    )


def transform_weight(weight: Tensor, taps: Tensor = TAPS) -> Tensor:
    """(out, in, 3, 3) and, for rows and columns, (n, 3) -> (n, n, in, out), computed in float64 and rounded once."""
    out_channels, in_channels = weight.shape[:2]
    both = torch.kron(taps, taps)  # (n * n, 9)
    result = torch.empty(len(both), in_channels, out_channels, dtype=weight.dtype)
    for first in range(0, out_channels, _WEIGHT_CHANNELS):
        part = weight[first : first + _WEIGHT_CHANNELS].double().permute(2, 3, 1, 0).flatten(2).flatten(0, 1)
        result[..., first : first + _WEIGHT_CHANNELS] = (both @ part).unflatten(1, (in_channels, -1))
    return result.unflatten(0, (len(taps), len(taps)))


def transform_bytes(conv: Conv) -> int:
    """Bytes that `transform_weight` takes at most beside its result."""
    return 8 * (_POINTS**2 + 2 * 9) * _WEIGHT_CHANNELS * conv.in_channels


class Geometry(NamedTuple):
    """Sizes of one convolution's tiles."""

    in_channels: int
    out_channels: int
    width: int
    tile_rows: int
    """Rows of tiles that are made at once."""

    @property
    def tiles(self) -> int:
        """Tiles of a row. The last one begins behind the image: so all rows of tiles are one sequence."""
        return -(-self.width // TILE) + 1

    @property
    def columns(self) -> tuple[int, int]:
        """Columns of the window left and right of the source's."""
        return 1, self.tiles * TILE - self.width - 1

    @property
    def halves(self) -> tuple[int, int]:
        """Elements of the two halves of the scratch memory: each step reads one and writes the other."""
        count, wide, narrow = self.tile_rows * self.tiles, self.in_channels, self.out_channels
        rows = _POINTS * TILE
        return count * max(rows * wide, _POINTS**2 * narrow), count * max(_POINTS**2 * wide, rows * narrow)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the transformed weights."""
        return _POINTS**2 * self.in_channels * self.out_channels * torch.float32.itemsize

    @property
    def scratch_bytes(self) -> int:
        """Bytes of both halves."""
        return sum(self.halves) * torch.float32.itemsize


def plan_tiles(conv: Conv, width: int, rows: int) -> Geometry:
    """The geometry for a source of that width and strips of so many rows."""
    one = Geometry(conv.in_channels, conv.out_channels, width, 1)
    return one._replace(tile_rows=max(1, min(-(-rows // TILE), CHUNK_BYTES // one.scratch_bytes)))


def window_rows(rows: int) -> int:
    """Rows of the window for so many rows of results, zeros below to fill up the tiles included."""
    return -(-rows // TILE) * TILE + 2


def convolve_tiles(
    geometry: Geometry, window: Tensor, weight: Tensor, bias: Tensor | None, scratch: Tensor, out: Tensor
) -> None:
    """Write the convolution of a window into `out`, one image.

    Args:    window: (window_rows(n), tiles * TILE, in), dense. weight: from `transform_weight`. bias: (out,) or None.
             scratch: flat, float32, of `scratch_bytes`. out: (n, width, out), dense.
    """
    rows = out.shape[0]
    for first in range(0, rows, geometry.tile_rows * TILE):
        last = min(rows, first + geometry.tile_rows * TILE)
        _chunk(geometry, window[first : first + window_rows(last - first)], weight, bias, scratch, out[first:last])


def _chunk(
    geometry: Geometry, window: Tensor, weight: Tensor, bias: Tensor | None, scratch: Tensor, out: Tensor
) -> None:
    """Some rows of tiles."""
    wide, narrow, tiles = geometry.in_channels, geometry.out_channels, geometry.tiles
    tile_rows = (window.shape[0] - 2) // TILE
    count, pitch = tile_rows * tiles, tiles * TILE
    data, result = _DATA.to(torch.float32), _RESULT.to(torch.float32)
    one, other = scratch[: sum(geometry.halves)].split(geometry.halves)

    by_row = one[: _POINTS * tile_rows * pitch * wide].view(_POINTS, tile_rows, pitch * wide)
    lines = window.view(window.shape[0], pitch * wide)
    for row in range(tile_rows):
        torch.mm(data, lines[row * TILE : row * TILE + _POINTS], out=by_row[:, row])

    # Tiles overlap by two columns. The last tile of the last row would reach beyond the window; nobody reads it.
    spans = by_row.view(-1).as_strided((_POINTS * count - 1, _POINTS, wide), (TILE * wide, wide, 1))
    by_tile = other[: _POINTS * count * _POINTS * wide].view(_POINTS * count, _POINTS, wide)
    torch.bmm(data.expand(len(spans), -1, -1), spans, out=by_tile[:-1])
    by_tile[-1].zero_()

    products = one[: _POINTS**2 * count * narrow].view(_POINTS, _POINTS, count, narrow)
    for row in range(_POINTS):
        tokens = by_tile.view(_POINTS, count, _POINTS, wide)[row].transpose(0, 1)  # (6, count, in)
        torch.bmm(tokens, weight[row], out=products[row])

    half = other[: _POINTS * TILE * count * narrow].view(_POINTS, TILE, count * narrow)
    torch.bmm(result.expand(_POINTS, -1, -1), products.view(_POINTS, _POINTS, count * narrow), out=half)
    squares = one[: TILE**2 * count * narrow].view(TILE, TILE * count * narrow)
    torch.mm(result, half.view(_POINTS, -1), out=squares)
    _scatter(squares.view(TILE, TILE, tile_rows, tiles, narrow), bias, out)


def _scatter(squares: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """(row in tile, column in tile, tile rows, tiles, C), plus bias, into (rows, width, C)."""
    rows, width, channels = out.shape
    squares = squares.permute(2, 0, 3, 1, 4)  # (tile rows, 4, tiles, 4, C)
    shift = out.new_zeros(channels) if bias is None else bias
    for top, bottom in ((0, rows // TILE * TILE), (rows // TILE * TILE, rows)):
        for left, right in ((0, width // TILE * TILE), (width // TILE * TILE, width)):
            height, breadth = bottom - top, right - left
            if height == 0 or breadth == 0:
                continue
            # A rest of a tile is shorter than a tile: one tile, cut.
            shape = (max(1, height // TILE), min(TILE, height), max(1, breadth // TILE), min(TILE, breadth))
            part = squares[top // TILE :][: shape[0], : shape[1], left // TILE :][:, :, : shape[2], : shape[3]]
            strides = (TILE * out.stride(0), out.stride(0), TILE * channels, channels, 1)
            target = out[top:, left:].as_strided((*shape, channels), strides)
            torch.add(part, shift, out=target)
