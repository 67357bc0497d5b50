"""3x3 convolutions of stride 1 with a quarter of the multiplications, for CPUs, in float32.

Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray 2016, arXiv 1509.09308): tiles of 6x6 values are transformed,
multiplied by the transformed weights as 36 matrix products, and transformed back into 4x4 results. With the points
0, 1, -1, 1/2, -2 and infinity (Barabasz et al. 2020, arXiv 1803.10986) a layer's mean error stays below 32 ulp of
its results' size, to which tests/kernels/test_winograd.py holds it. The transforms along rows and columns are matrix
products, too, so everything runs at the speed of libraries: `product.py` says which.

16-bit values would be rounded between the steps, and GPU libraries choose such methods by themselves: neither is here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .products import best_products

TILE = 4
"""Rows and columns of results that are made at once."""
_POINTS = TILE + 2
CHUNK_BYTES = 40 * 2**20
"""Intermediate values of so many bytes at a time: fewer make short products, more take memory that gains little."""
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


def write_weight(weight: Tensor, taps: Tensor, target: Tensor) -> None:
    """Sums of the taps of (out, in, 3, 3) by a matrix (g * n, 9), computed in float64 and rounded once.

    Written to (g, n, out, in), dense, in the order that `best_products` wants for n products at once.
    """
    groups, out_channels, in_channels = target.shape[1:]
    for first in range(0, out_channels, _WEIGHT_CHANNELS):
        part = weight[first : first + _WEIGHT_CHANNELS].double().permute(2, 3, 0, 1).flatten(2).flatten(0, 1)
        made = (taps @ part).view(-1, groups, len(part[0]) // in_channels, in_channels)
        best_products().arrange(made, first, target)
        del made


def transform_bytes(in_channels: int) -> int:
    """Bytes that `write_weight` takes at most."""
    return 8 * (_POINTS**2 + 2 * 9) * _WEIGHT_CHANNELS * in_channels


class ProductTiles(NamedTuple):
    """Sizes of one convolution's tiles, and the convolution."""

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
        return count * _POINTS * TILE * max(wide, narrow), count * _POINTS**2 * wide

    @property
    def weight_bytes(self) -> int:
        """Bytes of the transformed weights."""
        return _POINTS**2 * self.in_channels * self.out_channels * torch.float32.itemsize

    @property
    def scratch_bytes(self) -> int:
        """Bytes of both halves."""
        return sum(self.halves) * torch.float32.itemsize

    @property
    def product_bytes(self) -> int:
        """Bytes that the products of one row of points take beside them."""
        return _POINTS * self.tile_rows * self.tiles * self.out_channels * torch.float32.itemsize

    @property
    def transform_bytes(self) -> int:
        """Bytes that `transform_weight` takes at most, its result not counted."""
        return transform_bytes(self.in_channels)

    def transform_weight(self, weight: Tensor, *, odd: bool = False) -> Tensor:
        """(out, in, 3, 3) -> (6, 6, out, in) in the order that `best_products` wants for six products at once."""
        result = torch.empty(_POINTS, _POINTS, *weight.shape[:2], dtype=weight.dtype)
        write_weight(weight, torch.kron(TAPS, TAPS), result)
        return result

    def run(
        self, window: Tensor, weight: Tensor, bias: Tensor | None, scratch: Tensor, out: Tensor, top: int = 0,
        *, odd: bool = False,
    ) -> None:  # fmt: skip
        """Write the convolution of a window into `out`, one image.

        Args:    window: (window_rows(n), tiles * TILE, in), dense. weight: from `transform_weight`.
                 bias: (out,) or None. scratch: flat, float32, of `scratch_bytes`. out: (n, width, out), dense.
        """
        rows, step = out.shape[0], self.tile_rows * TILE
        for first in range(0, rows, step):
            last = min(rows, first + step)
            _chunk(self, window[first : first + window_rows(last - first)], weight, bias, scratch, out[first:last])


def plan_product_tiles(channels: tuple[int, int], width: int, rows: int) -> ProductTiles:
    """The geometry for a source of that width and strips of so many rows."""
    one = ProductTiles(*channels, width, 1)
    return one._replace(tile_rows=max(1, min(-(-rows // TILE), CHUNK_BYTES // (one.scratch_bytes + one.product_bytes))))


def window_rows(rows: int) -> int:
    """Rows of the window for so many rows of results, zeros below to fill up the tiles included."""
    return -(-rows // TILE) * TILE + 2


def _chunk(
    geometry: ProductTiles, window: Tensor, weight: Tensor, bias: Tensor | None, scratch: Tensor, out: Tensor
) -> None:
    """Some rows of tiles."""
    narrow, tiles, products = geometry.out_channels, geometry.tiles, best_products()
    tile_rows = (window.shape[0] - 2) // TILE
    count, width = tile_rows * tiles, out.shape[1]
    result = _RESULT.to(torch.float32)
    one, other = scratch[: sum(geometry.halves)].split(geometry.halves)
    tokens = _transform_window(geometry, window, products.parts(geometry.in_channels), one, other)
    half = one[: _POINTS * TILE * count * narrow].view(_POINTS, count, TILE, narrow)
    for row in range(_POINTS):
        product = products.grouped([part[row] for part in tokens], weight[row])  # (count, 6, out)
        if bias is not None and row == 1:
            product[:, 1] += bias  # the value at 1, 1 is part of every result, once
        torch.bmm(result.expand(count, -1, -1), product, out=half[row])
        del product
    lines = half.view(_POINTS, tile_rows, -1)  # of a row of tiles all columns in their order
    for row in range(tile_rows):
        part = out[row * TILE : (row + 1) * TILE]
        torch.mm(result[: len(part)], lines[:, row, : width * narrow], out=part.view(len(part), -1))


def _transform_window(
    geometry: ProductTiles, window: Tensor, parts: list[tuple[int, int]], one: Tensor, other: Tensor
) -> list[Tensor]:
    """(6, tiles of all rows, 6, channels) for every part of the channels, in `other`; `one` is for in between."""
    wide, tiles = geometry.in_channels, geometry.tiles
    tile_rows = (window.shape[0] - 2) // TILE
    count, pitch = tile_rows * tiles, tiles * TILE
    data = _DATA.to(torch.float32)
    by_row = one[: _POINTS * tile_rows * pitch * wide].view(_POINTS, tile_rows, pitch * wide)
    lines = window.view(window.shape[0], pitch * wide)
    for row in range(tile_rows):
        torch.mm(data, lines[row * TILE : row * TILE + _POINTS], out=by_row[:, row])

    # Tiles overlap by two columns. The last tile of the last row would reach beyond the window; nobody reads it.
    result: list[Tensor] = []
    for start, end in parts:
        spans = by_row.view(-1)[start:].as_strided((_POINTS * count - 1, _POINTS, end - start), (TILE * wide, wide, 1))
        by_tile = other[_POINTS**2 * count * start :][: _POINTS**2 * count * (end - start)]
        by_tile = by_tile.view(_POINTS * count, _POINTS, end - start)
        torch.bmm(data.expand(len(spans), -1, -1), spans, out=by_tile[:-1])
        by_tile[-1].zero_()
        result.append(by_tile.view(_POINTS, count, _POINTS, end - start))
    return result
