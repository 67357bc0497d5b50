"""Squares of 2x2 pixels in the channels of cells, and back: where which channel lies is data.

(4C, h, w) to (C, 2h, 2w) in any order of rows, columns and channels; where a cell has fewer channels, some serve
several pixels; on the way back such pixels become their mean. Some channels of cells may belong to no pixel. Where one
frame of cells stands for two of pixels the same is true of squares of two frames.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..extent import Extent
from .context import Context
from .source import Cost, MakeSource, Source

Corners = tuple[int, int, int, int]


@dataclass(frozen=True)
class Squares:
    """Channel c of the pixel in row y and column x of a square is channel `first[2 * y + x] + step * c` of its cell."""

    channels: int
    """Of pixels."""
    first: Corners
    step: int = 1
    earlier: Corners | None = None
    """As `first`, of the earlier of the two frames of pixels that one frame of cells stands for: of a clip of 1 + 2n of
    them, but for the first, which stands alone. None: as many frames as of cells; the first axis may be one of
    pictures."""
    continues: bool = False
    """Whether the first frame of the clip came before: every frame of cells stands for two."""

    def of(self, cells: Tensor, first: int) -> Tensor:
        """Those channels of `cells` (B, C, n, w) that begin with `first`, as a view."""
        return cells[:, first :: self.step][:, : self.channels]

    def parts(self, pixels: Tensor, cells: Tensor) -> list[tuple[Tensor, Tensor, Corners]]:
        """Frames of pixels, the frames of cells that stand for them, and with which channels."""
        if self.earlier is None:
            return [(pixels, cells, self.first)]
        if self.continues:
            return [(pixels[1::2], cells, self.first), (pixels[::2], cells, self.earlier)]
        rest = cells[1:]
        return [(pixels[::2], cells, self.first), (pixels[1::2][: len(rest)], rest, self.earlier)]

    def frames_of_pixels(self, frames: int) -> int:
        """How many become of so many frames of cells."""
        return frames if self.earlier is None else 2 * frames - (not self.continues)

    def frames_of_cells(self, frames: int) -> int:
        """The way back; a last one that has no other is left out."""
        return frames if self.earlier is None else (frames + 1) // 2

    @property
    def turned(self) -> Squares:
        """With rows and columns in each other's places."""
        return replace(self, first=_turned(self.first), earlier=None if self.earlier is None else _turned(self.earlier))

    @property
    def shared(self) -> int:
        """Pixels of a square that one channel of a cell stands for."""
        return 4 // len({*self.first})


def _turned(corners: Corners) -> Corners:
    return corners[0], corners[2], corners[1], corners[3]


def spread(cells: Tensor, squares: Squares) -> Tensor:
    """(B, c, h, w) -> (B, C, 2h, 2w), a new tensor. Of the frames of a clip more may come out."""
    frames = squares.frames_of_pixels(cells.shape[0])
    out = cells.new_empty(frames, squares.channels, 2 * cells.shape[2], 2 * cells.shape[3])
    for pixels, shown, corners in squares.parts(out, cells):
        for place, first in enumerate(corners):
            pixels[:, :, place // 2 :: 2, place % 2 :: 2] = squares.of(shown, first)
    return out


def gather(out: Tensor, pixels: Tensor, squares: Squares, run: int) -> None:
    """(B, C or more, 2h, 2w) into out (B, c, h, w), which is zeros where a channel stands for no pixel. Of the frames
    of a clip fewer may come out.

    What several pixels share is their sum by `run`, added in float32 or better and rounded once.
    """
    found: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for frames, cells, corners in squares.parts(pixels, out):
        for place, first in enumerate(corners):
            part = frames[: len(cells), : squares.channels, place // 2 :: 2, place % 2 :: 2]
            found.setdefault(first, []).append((squares.of(cells, first), part))
    for parts in found.values():
        target, first = parts[0]  # of all frames that any of the parts has
        if run == 1:
            target.copy_(first)
            continue
        total = first.to(torch.promote_types(pixels.dtype, torch.float32), copy=True)
        for _, part in parts[1:]:
            total[len(total) - len(part) :] += part
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
        for pixels, shown, corners in self.squares.parts(out, cells):
            for place, first in enumerate(corners):
                y, x = divmod(place, 2)
                low = max(0, -((row + y) // 2))
                high = min(cells.shape[2], (out.shape[2] - row - y + 1) // 2)
                if low < high:
                    rows = slice(row + y + 2 * low, row + y + 2 * high - 1, 2)
                    pixels[:, :, rows, x::2] = self.squares.of(shown, first)[:, :, low:high]

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
