"""Nearest x2 and a 3x3 convolution as 21 matrix products of the small plane for 12 results, for CPUs, in float32.

Both rows of results that come from source row s see the rows (s - 1, s, s, s + 1). Winograd's F(2, 3) of these needs
three products instead of four: of s - 1 less s with the first tap, of s with the sum of the taps, of s less s + 1 with
the last tap. Columns are taken further: results of one parity are a filter of two taps, whose F(3, 2) takes four
products for three results from four source columns (points 0, 1, -1 and infinity). The product at 1 is the same for
both parities, so six columns of results take seven products. Nothing but sums, differences and halves is taken.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .products import best_products
from .winograd import CHUNK_BYTES, transform_bytes, write_weight

_STEP = 3
"""Source columns from one tile to the next; each reads one more."""
_POINTS = 4
_KINDS = 3
"""Products along rows: of the row above less this one, of this one, of this one less the row below."""
_SUMS = 7
"""Products along columns: even and odd results at 0, -1 and infinity, both at 1 with one."""
_PAIRS = ((0, 0), (2, 3), (3, 5))
"""Points whose products differ by parity, each with where its two stand among the seven; that at 1 is number 2."""
_ROW_TAPS = torch.tensor([[1, 0, 0], [1, 1, 1], [0, 0, 1]], dtype=torch.float64)
_PAIR_TAPS = torch.tensor(
    [[1, 0, 0], [1, 1, 0], [0.5, -0.5, -0.5], [0.5, 0.5, -0.5], [0, 1, 1], [0, 0, 1]], dtype=torch.float64
)
_SUM_TAPS = torch.tensor([[0.5, 0.5, 0.5]], dtype=torch.float64)
_COLUMNS = torch.tensor(
    [
        [0, 1, 1, 0, 1, 0, 0],
        [1, 0, 1, 1, 0, 0, 0],
        [0, 0, 1, 0, -1, 0, 0],
        [0, 0, 1, -1, 0, 0, 0],
        [0, 0, 1, 0, 1, 0, 1],
        [0, 0, 1, 1, 0, 1, 0],
    ],
    dtype=torch.float32,
)
"""Six columns of results, the first one odd, from the seven products."""
_RESULT = (torch.cat([_COLUMNS, _COLUMNS], dim=1), torch.cat([_COLUMNS, -_COLUMNS], dim=1))
"""By parity of the row: from two kinds of seven products."""


class ProductUpsample(NamedTuple):
    """Sizes of one upsample, and the upsample."""

    in_channels: int
    out_channels: int
    width: int
    """Columns of the source."""
    rows: int
    """Source rows that are taken at once."""

    @property
    def tiles(self) -> int:
        """Tiles of a row."""
        return -(-(self.width + 2) // _STEP)

    @property
    def columns(self) -> tuple[int, int]:
        """Columns of the window left and right of the source's."""
        return 1, self.tiles * _STEP - self.width - 1

    @property
    def sections(self) -> tuple[int, int, int, int]:
        """Elements of the points of rows, of their differences, of the products, and of one parity's results."""
        values, products = _POINTS * self.tiles * self.in_channels, self.rows * self.tiles * self.out_channels
        return (self.rows + 2) * values, (self.rows + 1) * values, _KINDS * _SUMS * products, 2 * _STEP * products

    @property
    def scratch_bytes(self) -> int:
        """Bytes of all of them."""
        return sum(self.sections) * torch.float32.itemsize

    @property
    def weight_bytes(self) -> int:
        """Bytes of the transformed weights."""
        return _KINDS * _SUMS * self.in_channels * self.out_channels * torch.float32.itemsize

    @property
    def product_bytes(self) -> int:
        """Bytes that one product takes beside them."""
        return 2 * self.rows * self.tiles * self.out_channels * torch.float32.itemsize

    @property
    def transform_bytes(self) -> int:
        """Bytes that `transform_weight` takes beside its result."""
        return transform_bytes(self.in_channels)

    def transform_weight(self, weight: Tensor, *, odd: bool = False) -> Tensor:
        """(out, in, 3, 3) -> (21, out, in): three times six in pairs, and three. The same for even and odd rows."""
        result = torch.empty(_KINDS * _SUMS, *weight.shape[:2], dtype=weight.dtype)
        pairs = _KINDS * len(_PAIR_TAPS)
        write_weight(weight, torch.kron(_ROW_TAPS, _PAIR_TAPS), result[:pairs].unflatten(0, (-1, 2)))
        write_weight(weight, torch.kron(_ROW_TAPS, _SUM_TAPS), result[pairs:][:, None])
        return result

    def run(
        self, window: Tensor, weight: Tensor, bias: Tensor | None, scratch: Tensor, out: Tensor, top: int = 0,
        *, odd: bool = False,
    ) -> None:  # fmt: skip
        """Write rows top, top + 1, ... of the upsampled plane into `out`, one image.

        Args:    window: (n, 3 * tiles, in), dense: the source from row (top - 1) // 2 on, with its borders.
                 weight: from `transform_weight`. bias: (out,) or None. scratch: flat, float32, of `scratch_bytes`.
                 out: (rows, 2 * width, out), dense.
        """
        bottom = top + out.shape[0]
        for start in range(top // 2, -(-bottom // 2), self.rows):
            end = min(start + self.rows, -(-bottom // 2))
            even = range(max(start, -(-top // 2)), end)  # source rows whose result rows 2 * s are wanted
            odds = range(start, min(end, bottom // 2))  # and those whose result rows 2 * s + 1 are
            low = start - (even.start == start)
            lines = window[low - (top - 1) // 2 : end + (odds.stop == end) - (top - 1) // 2]
            chunk = _Chunk(self, lines, low, start, scratch)
            chunk.multiply(even, odds, weight, bias)
            chunk.add_up(even, odds, out, top)


def plan_product_upsample(channels: tuple[int, int], width: int, rows: int) -> ProductUpsample:
    """The geometry for a source of that width and strips of so many of its rows."""
    one = ProductUpsample(*channels, width, 1)
    more = one._replace(rows=2).scratch_bytes - one.scratch_bytes
    return one._replace(rows=max(1, min(rows, 1 + (CHUNK_BYTES - one.scratch_bytes) // more)))


class _Chunk:
    """Source rows from `start` on; `lines` are those from `low` on, with the neighbours that are needed."""

    def __init__(self, geometry: ProductUpsample, lines: Tensor, low: int, start: int, scratch: Tensor) -> None:
        self.geometry, self.low, self.start = geometry, low, start
        channels, tiles = geometry.in_channels, geometry.tiles
        plain, down, products, self.result = scratch[: sum(geometry.sections)].split(geometry.sections)
        count = len(lines) * tiles
        self.plain = plain[: _POINTS * count * channels].view(_POINTS, count, channels)
        _points(lines.view(count, _STEP, channels), self.plain)
        self.down = down[: _POINTS * (count - tiles) * channels].view(_POINTS, count - tiles, channels)
        torch.sub(self.plain[:, : count - tiles], self.plain[:, tiles:], out=self.down)
        self.products = products.view(geometry.rows * tiles, _KINDS * _SUMS, geometry.out_channels)

    def multiply(self, even: range, odd: range, weight: Tensor, bias: Tensor | None) -> None:
        """The products of three kinds of rows at four points of columns."""
        single, pairs, out_channels = best_products().single, _KINDS * len(_PAIR_TAPS), self.geometry.out_channels
        for kind, rows in ((0, even), (1, range(self.start, max(even.stop, odd.stop))), (2, odd)):
            if not len(rows):
                continue
            lines = self._tiles(rows, self.low + (kind == 0))
            tokens = (self.plain if kind == 1 else self.down)[:, lines]
            target = self.products[self._tiles(rows, self.start), kind * _SUMS : (kind + 1) * _SUMS].flatten(1)
            for number, (point, place) in enumerate(_PAIRS):
                both = weight[kind * 6 + 2 * number :][:2].flatten(0, 1)
                single(tokens[point], both, target[:, place * out_channels : (place + 2) * out_channels])
            middle = target[:, 2 * out_channels : 3 * out_channels]
            single(tokens[1], weight[pairs + kind], middle)
            if bias is not None and kind == 1:
                middle += bias  # this one is part of every result

    def add_up(self, even: range, odd: range, out: Tensor, top: int) -> None:
        """Results from products."""
        for parity, rows in ((0, even), (1, odd)):
            if not len(rows):
                continue
            products = self.products[self._tiles(rows, self.start), parity * _SUMS : (parity + 2) * _SUMS]
            made = self.result[: len(products) * 2 * _STEP * self.geometry.out_channels]
            made = made.view(len(products), 2 * _STEP, self.geometry.out_channels)
            torch.bmm(_RESULT[parity].expand(len(products), -1, -1), products, out=made)
            lines = made.view(len(rows), -1, self.geometry.out_channels)
            out[2 * rows.start + parity - top :: 2][: len(rows)] = lines[:, 1 : 1 + 2 * self.geometry.width]

    def _tiles(self, rows: range, first: int) -> slice:
        """The tiles of some rows among those from row `first` on."""
        return slice((rows.start - first) * self.geometry.tiles, (rows.stop - first) * self.geometry.tiles)


def _points(tiles: Tensor, out: Tensor) -> None:
    """The four points (4, tiles, C) of tiles (tiles, 3, C), all rows in one sequence.

    At the end of a row the fourth column is that of the next row; it is part of results only that nobody wants.
    """
    first, second, third = tiles.unbind(1)
    torch.sub(first, third, out=out[0])
    torch.add(second, third, out=out[1])
    torch.sub(third, second, out=out[2])
    torch.sub(first[1:], second[:-1], out=out[3, :-1])
    torch.neg(second[-1], out=out[3, -1])
