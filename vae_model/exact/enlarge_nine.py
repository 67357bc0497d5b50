"""Nearest x2 and a 3x3 convolution as nine matrix products of the small plane, for processors, in float32.

Both rows of results that come from source row s see the rows (s - 1, s, s, s + 1). Winograd's F(2, 3) of these needs
three products instead of four: of s - 1 less s with the first tap, of s with the sum of the taps, of s less s + 1 with
the last tap; likewise for columns. That is 9 products for 4 results, where four 2x2 convolutions take 16. Nothing but
differences and sums is taken, so the error is no larger than theirs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .product import best_products
from .spec import Conv
from .winograd import CHUNK_BYTES

NINE_TAPS = torch.tensor([[1, 0, 0], [1, 1, 1], [0, 0, 1]], dtype=torch.float64)
"""The first tap, the sum of the taps, the last tap: for `transform_weight`."""


class NineGeometry(NamedTuple):
    """Sizes of one enlargement."""

    in_channels: int
    out_channels: int
    width: int
    """Columns of the source."""
    rows: int
    """Source rows that are taken at once."""

    @property
    def pitch(self) -> int:
        """Columns of the window: the source and one on each side."""
        return self.width + 2

    @property
    def sections(self) -> tuple[int, int, int, int]:
        """Elements of the differences of rows, of columns, of both, and of the products."""
        values = self.pitch * self.in_channels
        products = 9 * self.rows * self.pitch * self.out_channels
        return (self.rows + 1) * values, (self.rows + 2) * values, (self.rows + 1) * values, products

    @property
    def scratch_bytes(self) -> int:
        """Bytes of all of them."""
        return sum(self.sections) * torch.float32.itemsize

    @property
    def product_bytes(self) -> int:
        """Bytes that one product takes beside them."""
        return self.rows * self.pitch * self.out_channels * torch.float32.itemsize


def plan_nine(conv: Conv, width: int, rows: int) -> NineGeometry:
    """The geometry for a source of that width and strips of so many of its rows."""
    one = NineGeometry(conv.in_channels, conv.out_channels, width, 1)
    return one._replace(rows=max(1, min(rows, CHUNK_BYTES // one.scratch_bytes)))


def enlarge_nine(
    geometry: NineGeometry, window: Tensor, weight: Tensor, bias: Tensor | None, scratch: Tensor, out: Tensor, top: int
) -> None:
    """Write rows top, top + 1, ... of the enlarged plane into `out`, one image.

    Args:    window: (n, width + 2, in), dense: the source from row (top - 1) // 2 on, with its borders.
             weight: from `transform_weight` with NINE_TAPS. bias: (out,) or None.
             scratch: flat, float32, of `scratch_bytes`.
             out: (rows, 2 * width, out), dense.
    """
    bottom = top + out.shape[0]
    for start in range(top // 2, -(-bottom // 2), geometry.rows):
        end = min(start + geometry.rows, -(-bottom // 2))
        even = range(max(start, -(-top // 2)), end)  # source rows whose result rows 2 * s are wanted
        odd = range(start, min(end, bottom // 2))  # and those whose result rows 2 * s + 1 are
        low = start - (even.start == start)
        lines = window[low - (top - 1) // 2 : end + (odd.stop == end) - (top - 1) // 2]
        chunk = _Chunk(geometry, lines, low, start, scratch)
        chunk.multiply(even, odd, weight, bias)
        chunk.add_up(even, odd, out, top)


class _Chunk:
    """Source rows from `start` on; `lines` are those from `low` on, with the neighbours that are needed."""

    def __init__(self, geometry: NineGeometry, lines: Tensor, low: int, start: int, scratch: Tensor) -> None:
        self.geometry, self.low, self.start = geometry, low, start
        channels, pitch = geometry.in_channels, geometry.pitch
        down, across, both, products = scratch[: sum(geometry.sections)].split(geometry.sections)
        self.plain = lines.view(-1, channels)
        self.down = down[: max(0, len(lines) - 1) * pitch * channels].view(-1, channels)
        torch.sub(self.plain[: len(self.down)], self.plain[pitch:], out=self.down)
        self.across, self.both = _beside(self.plain, across), _beside(self.down, both)
        self.products = products.view(3, 3, geometry.rows, pitch, geometry.out_channels)

    def multiply(self, even: range, odd: range, weight: Tensor, bias: Tensor | None) -> None:
        """The products of three kinds of rows and three kinds of columns."""
        products = best_products()
        for kind, rows in ((0, even), (1, range(self.start, max(even.stop, odd.stop))), (2, odd)):
            plain, beside = (self.plain, self.across) if kind == 1 else (self.down, self.both)
            line = (rows.start - self.low - (kind == 0)) * self.geometry.pitch
            count = (len(rows) - 1) * self.geometry.pitch + self.geometry.width
            for column in range(3 if len(rows) else 0):
                tokens = (plain if column == 1 else beside)[line + (column > 0) :][:count]
                out = self._rows(kind, column, rows).flatten(0, 1)[:count]
                products.single(tokens, weight[kind, column], out)
                if bias is not None and kind == column == 1:
                    out += bias  # this one is part of every result

    def add_up(self, even: range, odd: range, out: Tensor, top: int) -> None:
        """Results from products; those of odd rows are made in the place of what even rows need, so after them."""
        for parity, rows in ((0, even), (1, odd)):
            if not len(rows):
                continue
            sums: list[Tensor] = []
            for column in range(3):
                kept = self._rows(parity, column, rows)
                other = self._rows(parity + 1, column, rows)
                sums.append((kept.sub_(other) if parity else kept.add_(other))[:, : self.geometry.width])
            left, middle, right = sums
            target = out[2 * rows.start + parity - top :: 2][: len(rows)]
            torch.add(left, middle, out=target[:, 0::2])
            torch.sub(middle, right, out=target[:, 1::2])

    def _rows(self, kind: int, column: int, rows: range) -> Tensor:
        return self.products[kind, column, rows.start - self.start : rows.stop - self.start]


def _beside(values: Tensor, memory: Tensor) -> Tensor:
    """Each pixel less the one on its right, (pixels - 1, C); at the end of a row that means nothing."""
    result = memory[: max(0, len(values) - 1) * values.shape[1]].view(-1, values.shape[1])
    return torch.sub(values[:-1], values[1:], out=result) if len(result) else result
