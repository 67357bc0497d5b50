"""What convolutions and enlargements share: gathering a window of source rows, with its borders and carried rows."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..layer import Conv
from ..program import Extent
from .border import fill_columns, fill_rows, padded_columns
from .context import Context
from .source import Cost, Recipe, Rows

Fill = Callable[[Tensor, Tensor], None]
"""(target, x): write what stands before a convolution (norm, activation) into a piece of its window."""


class Windowed(Rows):
    """Gathers the rows that a strip of results needs; the rows that the next strip needs again are carried over."""

    def __init__(self, context: Context, conv: Conv, size: Extent, top: int, bottom: int, source: Recipe) -> None:
        self.context, self.conv, self.top = context, conv, top
        first = self._first(top)
        # Without a border of its own a 1x1 convolution may be asked for rows of the other end, too.
        self.wraps = conv.circular or conv.kernel == 1
        self.place = context.share.place(self.source_height)
        self._last_row = 2**62 if self.wraps else self.place.whole - self.place.offset
        self.source = source(first if self.wraps else max(-self.place.offset, first), self._reach(bottom))
        super().__init__(context, size, top, bottom, self.source)
        self.scratch_bytes = max(self._own_scratch() + self._product_bytes(), self.scratch_bytes)
        if self._mode() == "reflect" and min(self.place.whole, self.source.size.width) < 2:
            raise ValueError(
                f"{conv.name}: expected at least 2 rows and columns to reflect, got fewer: enlarge the image"
            )
        self.columns = self._border_columns()
        self.window_row_bytes = context.row_bytes(conv.in_channels, self.source.size.width + sum(self.columns))
        self._buffer: Tensor | None = None
        self._carried: Tensor | None = None

    def _border_columns(self) -> tuple[int, int]:
        """Columns of the window left and right of the source's."""
        return padded_columns(self.conv)

    def _rows_below(self, rows: int) -> int:
        """Rows of zeros that the window ends with, for so many rows of results."""
        return 0

    def _first(self, row: int) -> int:
        """The first source row that result `row` needs."""
        raise NotImplementedError

    def _end(self, bottom: int) -> int:
        """The source row behind the last one that the results above `bottom` need."""
        raise NotImplementedError

    def _mode(self) -> str:
        return self.conv.mode

    def _reach(self, bottom: int) -> int:
        """Source rows that are read once the results above `bottom` are made."""
        return min(self._last_row, self._end(bottom))

    @property
    def source_height(self) -> int:
        raise NotImplementedError

    def _window(self, bottom: int, fill: Fill) -> Tensor:
        """The source rows of results at..bottom, borders filled in."""
        first, end = self._first(self.at), self._end(bottom)
        pieces = self.source.take(self._reach(bottom))
        size = self.source.size
        left, right = self.columns
        below = self._rows_below(bottom - self.at)
        window = self._buffer
        if window is None or window.shape[2] != end - first + below:
            window = self._buffer = None  # the old one is freed before the new one is made
            window = self.context.empty(size.channels, end - first + below, size.width + left + right)
            # The first window holds the whole halo. Kept, it would stand beside the next strip's windows before it.
            self._buffer = window if self.at > self.top else None
        whole = window
        window, rest = window[:, :, : end - first], window[:, :, end - first :]
        rest.zero_()
        inner = window[..., left : left + size.width]
        row = 0 if self._carried is None else self._carried.shape[2]
        if self._carried is not None:
            window[:, :, :row] = self._carried
        else:
            row = 0 if self.wraps else max(0, -self.place.offset - first)
        while pieces:  # each piece is let go as soon as it is in the window
            piece = pieces.pop(0)
            fill(inner[:, :, row : row + piece.shape[2]], piece)
            row += piece.shape[2]
            del piece
        if not self.wraps:
            fill_rows(window, self.place.offset + first, self.place.whole, self._mode())
        if left + right:
            border = left + size.width + self.conv.pad_after
            fill_columns(window[..., :border], left, size.width, self._mode())
            window[..., border:].zero_()
        self._carried = window[:, :, self._first(bottom) - first :].clone() if bottom < self.bottom else None
        return whole

    def _cost(self, top: int, bottom: int) -> Cost:
        end, weights = self._end(bottom), self._weight_bytes()
        begin = self._reach(top) if top > self.top else self.source.top
        source = self.source.cost(begin, min(self._last_row, end))
        # A strip that needs no new row here finds the window of the one before.
        above = top - 1 if bottom == top > self.top else top
        window = (end - self._first(above) + self._rows_below(bottom - above)) * self.window_row_bytes
        carry = (end - self._first(bottom)) * self.window_row_bytes if bottom < self.bottom else 0
        stands = window + carry + weights + source.stands
        if bottom <= top:
            return Cost(0, 0, stands, source.parked, (0, 0))
        held = (bottom - top) * self.row_bytes
        making, filling = held + self._extra(top, bottom), source.held + self._fill_bytes(source.held)
        opening = None
        if top == self.top:
            before, rest = source.first
            opening = weights + max(before, rest + window + max(filling, carry + making)), weights + rest + carry
        return Cost(max(source.peak, filling, making), held, stands, source.parked, opening)

    def _extra(self, top: int, bottom: int) -> int:
        """Bytes beside window and result while the result is made."""
        return 0

    def _fill_bytes(self, source_bytes: int) -> int:
        """Bytes beside the window and so many bytes of source rows while these are written into it."""
        return 0

    def _own_scratch(self) -> int:
        """Bytes that the method itself uses within a call."""
        return 0

    def _product_bytes(self) -> int:
        """Bytes that a matrix product takes beside the scratch memory."""
        return 0

    def _scratch(self) -> Tensor:
        return self.context.scratch(self._own_scratch())

    def _weight_bytes(self) -> int:
        return self.context.weight_bytes(self.conv)
