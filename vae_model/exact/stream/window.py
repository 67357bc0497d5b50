"""What convolutions and upsamples share: a window of source rows, with its borders and carried rows, and the result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..extent import Extent
from ..layer import Conv
from .border import fill_columns, fill_rows
from .context import Context, Fill
from .fill import ACTIVATE, copy_in
from .source import Cost, MakeSource, Source


class Windowed(Source):
    """Gathers the rows that a strip of results needs; the rows that the next strip needs again are carried over.

    Weights are fetched at the first strip, once a pass.
    """

    kind = "convolve"
    """As the table of methods calls it."""
    whole = True

    def __init__(
        self,
        context: Context,
        conv: Conv,
        top: int,
        bottom: int,
        source: MakeSource,
        source_size: Extent,
        fill: Callable[[], Fill] | None = None,
        after: str | None = None,
        fast_rows: int = 0,
        lean: bool = False,
    ) -> None:
        """`fill`: makes what stands before it. `after`: a function of single values behind it.

        `fast_rows`: rows of a strip for which a faster method may be used where it pays, 0 for the plain one.
        `lean`: of a clip's window nothing is kept from strip to strip but the rows that are carried over.
        """
        self.past = context.past if conv.taps > 1 else None
        self.seen = conv.taps - 1 if self.past is not None and self.past.continues else 0
        """Frames before the source's own that are kept: the window begins with them."""
        seen_size = source_size._replace(frames=source_size.frames + self.seen) if self.seen else source_size
        self.conv, self.method = conv, context.method(self.kind, conv, seen_size, fast_rows)
        self.taps = conv.taps_of(seen_size.frames)
        self.zeros = 0 if self.seen else self.method.frames_before
        """Frames of zeros that it begins with instead."""
        self.surplus = self.seen - self.method.frames_before if self.seen else 0
        """Results of those frames, which are made along by methods that know only zeros before."""
        first = self._first(top)
        # Without a border of its own a 1x1 convolution may be asked for rows of the other end, too.
        self.wraps = conv.circular or conv.kernel == 1
        self.place = context.share.place(source_size.height)
        self._last_row = 2**62 if self.wraps else self.place.whole - self.place.offset
        self.source = source(first if self.wraps else max(-self.place.offset, first), self._reach(bottom))
        super().__init__(context, self._size(source_size), top, bottom, self.source)
        if self._mode() == "reflect" and min(self.place.whole, source_size.width) < 2:
            raise ValueError(
                f"{conv.name}: expected at least 2 rows and columns to reflect, got fewer: take a larger image"
            )
        self.work += self._flops()
        self.scratch_bytes = max(self.method.scratch_bytes + self.method.product_bytes, self.scratch_bytes)
        self.columns, self.weight_bytes = self.method.columns, self.method.weight_bytes
        channels, height, width, frames = seen_size
        width += self.columns[0] + self.columns[1]
        self._window_size = Extent(channels, height, width, frames + self.zeros)
        self.made_row_bytes = self.row_bytes // self.size.frames * (self.size.frames + self.surplus)
        self.whole = not self.surplus
        self.window_row_bytes = context.row_bytes(self._window_size)
        self.carried_row_bytes = self.window_row_bytes // self._window_size.frames * frames
        self.make_fill, self.after = fill or (lambda: copy_in), after
        self.fill_bytes: Callable[[int], int] | None = getattr(fill, "work_bytes", None)
        """Bytes beside the window and so many bytes of source rows while these are written into it."""
        self._layer: tuple[Fill, Any, Tensor | None] | None = None
        self._odd, self.lean = False, lean and seen_size.frames > 1  # windows of pictures are small
        self._buffer: Tensor | None = None
        self._carried: Tensor | None = None

    def _size(self, source: Extent) -> Extent:
        """Of the result."""
        return self.conv.extent(source)

    def _flops(self) -> int:
        channels, _, width, frames = self.size
        flops = self.conv.flops(self.context.batch, Extent(channels, self.bottom - self.top, width, frames + self.seen))
        # The first of the surplus see one frame, the next two: on average half of what others see.
        return flops * (2 * frames + self.surplus) // (2 * (frames + self.seen))

    def _first(self, row: int) -> int:
        """The first source row that result `row` needs."""
        raise NotImplementedError

    def _end(self, bottom: int) -> int:
        """The source row behind the last one that the results above `bottom` need."""
        raise NotImplementedError

    def _mode(self) -> str:
        return self.conv.mode

    def _is_odd(self, top: int, bottom: int) -> bool:
        """Whether weights are wanted for strips that may begin with odd rows."""
        return False

    def _reach(self, bottom: int) -> int:
        """Source rows that are read once the results above `bottom` are made."""
        return min(self._last_row, self._end(bottom))

    def take(self, bottom: int) -> list[Tensor]:
        if bottom <= self.at:
            return []
        top = self.at
        odd = self._is_odd(top, bottom) and not self.method.one_arrangement
        if self._layer is None or (odd and top % 2 and not self._odd):
            self._layer = None  # the old one is freed before the new one is made
            self._odd = odd
            fill, (weight, bias) = self.make_fill(), self.context.layer_weights(self.conv, self.taps)
            self._layer = fill, self.method.arrange(self.context, weight, self._odd), bias
            del weight
        fill, weights, bias = self._layer
        window = self._window(bottom, fill)
        self.at = bottom
        out = self.method.run(self.context, window, weights, bias, top, bottom - top, self._odd)
        out = out[self.surplus :] if self.surplus else out
        return [ACTIVATE[self.after](out) if self.after else out]

    def _window(self, bottom: int, fill: Fill) -> Tensor:
        """The source rows of results at..bottom, borders filled in."""
        first, end = self._first(self.at), self._end(bottom)
        pieces = self.source.take(self._reach(bottom))
        size = self.source.size
        (left, right), zeros = self.columns, self.zeros
        below = self.method.rows_below(bottom - self.at)
        window = self._buffer
        if window is None or window.shape[2] != end - first + below:
            window = self._buffer = None  # the old one is freed before the new one is made
            window = self.context.strip(self._window_size, end - first + below)
            window[:zeros].zero_()
            # The first window holds the whole halo. Kept, it would stand beside the next strip's windows before it.
            self._buffer = window if self.at > self.top and not self.lean else None
        whole, window = window, window[zeros:]
        window, rest = window[:, :, : end - first], window[:, :, end - first :]
        rest.zero_()
        inner = window[..., left : left + size.width]
        row = 0 if self._carried is None else self._carried.shape[2]
        if self._carried is not None:
            window[:, :, :row] = self._carried
            self._carried = None
        else:
            row = 0 if self.wraps else max(0, -self.place.offset - first)
        known = row
        while pieces:  # each piece is let go as soon as it is in the window
            piece = pieces.pop(0)
            fill(inner[self.seen :, :, row : row + piece.shape[2]], piece)
            row += piece.shape[2]
            del piece
        if self.past is not None:
            self._meet_the_past(inner[:, :, known:row], first + known)
        if not self.wraps:
            fill_rows(window, self.place.offset + first, self.place.whole, self._mode())
        if left + right:
            border = left + size.width + self.conv.pad_after
            fill_columns(window[..., :border], left, size.width, self._mode())
            window[..., border:].zero_()
        self._carried = window[:, :, self._first(bottom) - first :].clone() if bottom < self.bottom else None
        return whole

    def _meet_the_past(self, rows: Tensor, top: int) -> None:
        """Put the frames kept before these new rows (frames, C, n, W), and keep the last ones for the next part."""
        assert self.past is not None
        count, size = self.conv.taps - 1, self.source.size
        if self.seen:
            rows[:count] = self.past.before(self.conv.name, size, count, top, top + rows.shape[2])
        self.past.keep(self.conv.name, size, count, top, rows[self.seen :])

    def _cost(self, top: int, bottom: int) -> Cost:
        end, weights, fold = self._end(bottom), self.weight_bytes, self.method.fold_bytes
        begin, reach = self._reach(top) if top > self.top else self.source.top, min(self._last_row, end)
        source = self.source.cost(begin, reach)
        # A strip that needs no new row here finds the window of the one before.
        above = top - 1 if bottom == top > self.top else top
        window = (end - self._first(above) + self.method.rows_below(bottom - above)) * self.window_row_bytes
        carry = (end - self._first(bottom)) * self.carried_row_bytes if bottom < self.bottom else 0
        stands = (0 if self.lean else window) + carry + weights + source.stands
        if bottom <= top:
            return Cost(0, 0, stands, source.parked, (0, 0))
        held = (bottom - top) * self.made_row_bytes
        making, filling = held + self.method.making_bytes(bottom - top), source.held
        if self.fill_bytes is not None:  # of all rows that are read, whoever holds them
            filling += self.fill_bytes((reach - begin) * self.source.row_bytes)
        peak = max(source.peak, filling, making)
        if (
            self.lean and top > self.top
        ):  # until they are in the window, the rows carried before stand for those to come
            more = (self._end(top) - self._first(top)) * self.carried_row_bytes - carry
            peak = max(source.peak + more, window + more + source.held, window - carry + filling, window + making)
        if top > self.top:
            return Cost(peak, held, stands, source.parked)
        before, rest = source.first
        most = weights + max(before, rest + window + max(filling, carry + making))
        if fold:  # while weights are made there is no window yet, and nothing has been read: only planes stand
            unread = self.source.cost(begin, begin).stands - source.stands
            peak = max(peak, fold + unread - (0 if self.lean else window))
            most = max(most, weights + fold + sum(plane.cost(plane.top, plane.top).stands for plane in self.planes))
        return Cost(peak, held, stands, source.parked, (most, weights + rest + carry))
