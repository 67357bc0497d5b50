"""Squares of 2x2 pixels in the channels of cells, and back: where which channel lies is data.

(4C, h, w) to (C, 2h, 2w) in any order of rows, columns and channels; where a cell has fewer channels, some serve
several pixels; on the way back such pixels become their mean. Some channels of cells may belong to no pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..extent import Extent
from .context import Context
from .source import Cost, MakeSource, Source


@dataclass(frozen=True)
class Squares:
    """Channel c of the pixel in row y and column x of a square is channel `first[2 * y + x] + step * c` of its cell."""

    channels: int
    """Of pixels."""
    first: tuple[int, int, int, int]
    step: int = 1

    def of(self, cells: Tensor, place: int) -> Tensor:
        """Those channels of `cells` (B, C, n, w) that stand at one place of the square, 2 * y + x, as a view."""
        return cells[:, self.first[place] :: self.step][:, : self.channels]

    @property
    def shared(self) -> int:
        """Pixels of a square that one channel of a cell stands for."""
        return 4 // len({*self.first})


def spread(cells: Tensor, squares: Squares) -> Tensor:
    """(B, c, h, w) -> (B, C, 2h, 2w), a new tensor."""
    out = cells.new_empty(cells.shape[0], squares.channels, 2 * cells.shape[2], 2 * cells.shape[3])
    for place in range(4):
        out[:, :, place // 2 :: 2, place % 2 :: 2] = squares.of(cells, place)
    return out


def gather(out: Tensor, pixels: Tensor, squares: Squares, run: int) -> None:
    """(B, C or more, 2h, 2w) into out (B, c, h, w), which is zeros where a channel stands for no pixel.

    What several pixels share is their sum by `run`, added in float32 or better and rounded once.
    """
    for first in sorted({*squares.first}):
        places = [place for place in range(4) if squares.first[place] == first]
        parts = [pixels[:, : squares.channels, place // 2 :: 2, place % 2 :: 2] for place in places]
        target = squares.of(out, places[0])
        if run == 1:
            target.copy_(parts[0])
            continue
        total = parts[0].to(torch.promote_types(pixels.dtype, torch.float32), copy=True)
        for part in parts[1:]:
            total += part
        target.copy_(total.div_(run))


class SpreadSource(Source):
    """Cells to pixels, twice as many rows and columns."""

    whole = True

    def __init__(
        self, context: Context, squares: Squares, top: int, bottom: int, source: MakeSource, size: Extent
    ) -> None:
        """`size`: of the result."""
        self.squares, self.source = squares, source(top // 2, -(-bottom // 2))
        super().__init__(context, size, top, bottom, self.source)
        self._half: Tensor | None = None
        """The row of cells of whose two rows of pixels only the first was taken."""

    def take(self, bottom: int) -> list[Tensor]:
        if bottom <= self.at:
            return []
        pieces = self.source.take(-(-bottom // 2))
        if self._half is not None:
            pieces.insert(0, self._half)
            self._half = None
        out = self.context.strip(self.size, bottom - self.at)
        row = self.at // 2
        while pieces:
            piece = pieces.pop(0)
            self._write(out, piece, 2 * row - self.at)
            row += piece.shape[2]
            if bottom % 2 and not pieces:
                self._half = piece[:, :, -1:].clone()
            del piece
        self.at = bottom
        return [out]

    def _write(self, out: Tensor, cells: Tensor, row: int) -> None:
        """The pixels of cells whose first row is row `row` of `out`, as far as they lie in it."""
        for place in range(4):
            y, x = divmod(place, 2)
            low = max(0, -((row + y) // 2))
            high = min(cells.shape[2], (out.shape[2] - row - y + 1) // 2)
            if low < high:
                rows = slice(row + y + 2 * low, row + y + 2 * high - 1, 2)
                out[:, :, rows, x::2] = self.squares.of(cells, place)[:, :, low:high]

    def _cost(self, top: int, bottom: int) -> Cost:
        first = top // 2 if top == self.top else -(-top // 2)
        source, held = self.source.cost(first, -(-bottom // 2)), (bottom - top) * self.row_bytes
        half = self.source.row_bytes * (bottom % 2)
        begun = self.source.row_bytes * (top % 2 and top > self.top)
        making, (before, rest) = source.held + held, source.first
        opening = max(before, rest + making), rest + half
        return Cost(max(source.peak, making) + begun, held, source.stands + half, source.parked, opening)


class GatheredSource(Source):
    """Pixels to cells, half as many rows and columns; channels that stand for several pixels get their mean, those that
    stand for none zeros. `run`: what the sum of such pixels is divided by."""

    whole = True

    def __init__(
        self, context: Context, squares: Squares, run: int, top: int, bottom: int, source: MakeSource, size: Extent
    ) -> None:
        """`size`: of the result."""
        self.squares, self.run, self.source = squares, run, source(2 * top, 2 * bottom)
        super().__init__(context, size, top, bottom, self.source)
        self.wide = torch.promote_types(context.dtype, torch.float32)

    def take(self, bottom: int) -> list[Tensor]:
        if bottom <= self.at:
            return []
        pieces = self.source.take(2 * bottom)
        out = self.context.strip(self.size, bottom - self.at)
        if self.squares.channels * 4 < self.size.channels * self.squares.shared:
            out.zero_()
        row, begun = 0, None
        while pieces:
            piece = pieces.pop(0)
            if begun is not None:  # two rows of a square from two pieces
                self._write(out[:, :, row : row + 1], torch.cat([begun, piece[:, :, :1]], dim=2))
                row, piece, begun = row + 1, piece[:, :, 1:], None
            rows = piece.shape[2] // 2
            if rows:
                self._write(out[:, :, row : row + rows], piece[:, :, : 2 * rows])
                row += rows
            if piece.shape[2] % 2:
                begun = piece[:, :, -1:]
        self.at = bottom
        return [out]

    def _write(self, out: Tensor, pixels: Tensor) -> None:
        """The cells of whole squares; a column that has no other is left out."""
        gather(out, pixels[..., : 2 * self.size.width], self.squares, self.run)

    def _cost(self, top: int, bottom: int) -> Cost:
        source, held = self.source.cost(2 * top, 2 * bottom), (bottom - top) * self.row_bytes
        working = source.held + held
        if self.run > 1:  # the sum, and a part that is made as wide
            part = (bottom - top) * self.size.width * self.squares.channels * self.context.batch * self.size.frames
            working += part * self.wide.itemsize * (1 if self.wide == self.context.dtype else 2)
        before, rest = source.first
        opening = max(before, rest + working), rest
        return Cost(max(source.peak, working), held, source.stands, source.parked, opening)
