"""Sources of rows that compute: convolution, enlargement, sum. Weights are fetched at the first strip, once a pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from .context import Context
from .convolve import enlarge_window, fill_columns, fill_rows, fold_bytes, fold_upsample, padded_columns
from .program import Size
from .rows import Cost, PlaneRows, Recipe, Rows
from .spec import Conv

Fill = Callable[[Tensor, Tensor], None]
"""(target, x): write what stands before a convolution (norm, activation) into a piece of its window."""
ACTIVATE: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": lambda x: functional.silu(x, inplace=True),
    "relu": torch.relu_,
    "gelu": lambda x: x.copy_(functional.gelu(x)),
    "mish": lambda x: functional.mish(x, inplace=True),
    "tanh": torch.tanh_,
}
"""In place, on a tensor that nobody else holds."""


def copy_in(target: Tensor, x: Tensor) -> None:
    """Nothing stands before the convolution."""
    target.copy_(x)


class Windowed(Rows):
    """Gathers the rows that a strip of results needs; the rows that the next strip needs again are carried over."""

    def __init__(self, context: Context, conv: Conv, size: Size, top: int, bottom: int, source: Recipe) -> None:
        super().__init__(context, size, top, bottom)
        self.conv = conv
        first = self._first(top)
        self.source = source(first if conv.circular else max(0, first), self._reach(bottom))
        self.columns = padded_columns(conv)
        self.window_row_bytes = context.row_bytes(conv.in_channels, self.source.size.width + sum(self.columns))
        self._buffer: Tensor | None = None
        self._carried: Tensor | None = None

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
        height = self.source_height
        return self._end(bottom) if self.conv.circular else min(height, self._end(bottom))

    @property
    def source_height(self) -> int:
        raise NotImplementedError

    def _window(self, bottom: int, fill: Fill) -> Tensor:
        """The source rows of results at..bottom, borders filled in."""
        first, end = self._first(self.at), self._end(bottom)
        pieces = self.source.take(self._reach(bottom))
        size = self.source.size
        left, right = self.columns
        window = self._buffer
        if window is None or window.shape[2] != end - first:
            window = self._buffer = None  # the old one is freed before the new one is made
            window = self._buffer = self.context.empty(size.channels, end - first, size.width + left + right)
        inner = window[..., left : left + size.width]
        row = 0 if self._carried is None else self._carried.shape[2]
        if self._carried is not None:
            window[:, :, :row] = self._carried
        else:
            row = 0 if self.conv.circular else max(0, -first)
        while pieces:  # each piece is let go as soon as it is in the window
            piece = pieces.pop(0)
            fill(inner[:, :, row : row + piece.shape[2]], piece)
            row += piece.shape[2]
            del piece
        if not self.conv.circular:
            fill_rows(window, first, size.height, self._mode())
        if left + right:
            fill_columns(window, left, size.width, self._mode())
        self._carried = window[:, :, self._first(bottom) - first :].clone() if bottom < self.bottom else None
        return window

    def _carry_bytes(self, bottom: int) -> int:
        return (self._end(bottom) - self._first(bottom)) * self.window_row_bytes if bottom < self.bottom else 0

    def _spans(self, top: int, bottom: int) -> tuple[int, int]:
        """What taking results top..bottom takes from the source."""
        above = self._reach(top) if top > self.top else self.source.top
        return above, self._reach(bottom)

    def _window_bytes(self, top: int, bottom: int) -> int:
        return (self._end(bottom) - self._first(top)) * self.window_row_bytes

    def cost(self, top: int, bottom: int) -> Cost:
        if bottom <= top:
            return Cost(0, 0)
        source = self.source.cost(*self._spans(top, bottom))
        out = (bottom - top) * self.row_bytes
        return Cost(max(source.peak, source.held, out + self._extra(top, bottom)), out)

    def _extra(self, top: int, bottom: int) -> int:
        """Bytes beside window and result while the result is made."""
        return 0

    def standing(self, top: int, bottom: int) -> int:
        own = self._window_bytes(top, bottom) + self._carry_bytes(bottom) + self._weight_bytes()
        return own + self.source.standing(*self._spans(top, bottom))

    def readers(self, bottom: int) -> list[tuple[PlaneRows, int]]:
        return self.source.readers(self._reach(bottom))

    def _weight_bytes(self) -> int:
        return self.context.weight_bytes(self.conv)


class ConvolvedRows(Windowed):
    """A convolution of any stride, with what stands before it and a function of single values behind it."""

    def __init__(
        self,
        context: Context,
        conv: Conv,
        top: int,
        bottom: int,
        source: Recipe,
        source_size: Size,
        fill: Callable[[], Fill] | None = None,
        after: str | None = None,
    ) -> None:
        self._source_height = source_size.height
        size = Size(conv.out_channels, conv.out_size(source_size.height), conv.out_size(source_size.width))
        super().__init__(context, conv, size, top, bottom, source)
        self.make_fill, self.after = fill, after
        self._layer: tuple[Fill, Tensor, Tensor | None] | None = None

    @property
    def source_height(self) -> int:
        return self._source_height

    def _first(self, row: int) -> int:
        return row * self.conv.stride - self.conv.pad_before

    def _end(self, bottom: int) -> int:
        return (bottom - 1) * self.conv.stride - self.conv.pad_before + self.conv.kernel

    def take(self, bottom: int) -> list[Tensor]:
        if bottom <= self.at:
            return []
        if self._layer is None:
            fill = copy_in if self.make_fill is None else self.make_fill()
            self._layer = (fill, *self.context.conv_weights(self.conv))
        fill, weight, bias = self._layer
        window = self._window(bottom, fill)
        self.at = bottom
        pad = 0 if sum(self.columns) else self.conv.pad_before
        out = functional.conv2d(window, weight, bias, stride=self.conv.stride, padding=(0, pad))
        return [ACTIVATE[self.after](out) if self.after else out]

    def work(self) -> int:
        return conv_work(self.conv, self.context.batch, self.bottom - self.top, self.size.width) + self.source.work()


def conv_work(conv: Conv, batch: int, rows: int, width: int) -> int:
    """Floating point operations of so many rows of results, a multiplication and an addition counted as two."""
    return 2 * conv.kernel**2 * conv.in_channels * conv.out_channels * batch * rows * width


class PointwiseRows(Rows):
    """A 1x1 convolution, piece by piece, without a window."""

    def __init__(self, context: Context, conv: Conv, source: Rows) -> None:
        super().__init__(context, source.size._replace(channels=conv.out_channels), source.top, source.bottom)
        self.conv, self.source = conv, source
        self._weights: tuple[Tensor, Tensor | None] | None = None

    def take(self, bottom: int) -> list[Tensor]:
        self._weights = self._weights or self.context.conv_weights(self.conv)
        pieces = self.source.take(bottom)
        self.at = bottom
        for index, piece in enumerate(pieces):
            pieces[index] = functional.conv2d(piece, *self._weights)
        return pieces

    def cost(self, top: int, bottom: int) -> Cost:
        source, out = self.source.cost(top, bottom), (bottom - top) * self.row_bytes
        return Cost(max(source.peak, source.held + out), out)

    def standing(self, top: int, bottom: int) -> int:
        return self.source.standing(top, bottom) + self.context.weight_bytes(self.conv)

    def readers(self, bottom: int) -> list[tuple[PlaneRows, int]]:
        return self.source.readers(bottom)

    def work(self) -> int:
        rows = self.bottom - self.top
        return conv_work(self.conv, self.context.batch, rows, self.size.width) + self.source.work()


_UPSAMPLED_BORDER = {"zeros": "zeros", "circular": "circular", "replicate": "replicate", "reflect": "replicate"}
"""Borders of the enlarged plane as borders of its source: row -1 of a reflected enlargement is its row 1, source row 0."""


class EnlargedRows(Windowed):
    """Nearest x2 and a 3x3 convolution, computed as four 2x2 convolutions of the small plane."""

    def __init__(
        self, context: Context, conv: Conv, top: int, bottom: int, source: Recipe, source_size: Size
    ) -> None:
        self._source_height = source_size.height
        size = Size(conv.out_channels, 2 * source_size.height, 2 * source_size.width)
        super().__init__(context, conv, size, top, bottom, source)
        self._layer: tuple[list[list[Tensor]], Tensor | None] | None = None

    @property
    def source_height(self) -> int:
        return self._source_height

    def _mode(self) -> str:
        return _UPSAMPLED_BORDER[self.conv.mode]

    def _first(self, row: int) -> int:
        return (row - 1) // 2

    def _end(self, bottom: int) -> int:
        return bottom // 2 + 1

    def take(self, bottom: int) -> list[Tensor]:
        if bottom <= self.at:
            return []
        self._layer = self._layer or self._fold()
        top, pad = self.at, 0 if sum(self.columns) else 1
        window = self._window(bottom, copy_in)
        self.at = bottom
        return [enlarge_window(self.context, window, *self._layer, top, bottom, pad)]

    def _fold(self) -> tuple[list[list[Tensor]], Tensor | None]:
        weight, bias = self.context.layer_weights(self.conv)
        order = self.context.memory_format
        return [[fold_upsample(weight, r, c).contiguous(memory_format=order) for c in (0, 1)] for r in (0, 1)], bias

    def cost(self, top: int, bottom: int) -> Cost:
        cost = super().cost(top, bottom)
        folding = fold_bytes(self.conv, self.context.dtype.itemsize) if top == self.top else 0
        folding -= self._window_bytes(top, bottom)  # there is no window yet
        return cost._replace(peak=max(cost.peak, folding))

    def _extra(self, top: int, bottom: int) -> int:
        rows = -(-(bottom - top) // 2)
        return rows * self.context.row_bytes(self.size.channels, self.source.size.width + 1)

    def _weight_bytes(self) -> int:
        return self.conv.out_channels * self.conv.in_channels * 16 * self.context.dtype.itemsize

    def work(self) -> int:
        rows = self.bottom - self.top
        return conv_work(self.conv, self.context.batch, rows, self.size.width) * 4 // 9 + self.source.work()


class AddedRows(Rows):
    """The sum of two sources; what `main` returns is fresh, so the other is added into it."""

    def __init__(self, main: Rows, other: Rows, after: str | None = None) -> None:
        super().__init__(main.context, main.size, main.top, main.bottom)
        self.main, self.other, self.after = main, other, after

    def take(self, bottom: int) -> list[Tensor]:
        if bottom <= self.at:
            return []
        (result,) = self.main.take(bottom)  # a convolution returns one piece
        self.at = bottom
        row = 0
        for piece in self.other.take(bottom):
            result[:, :, row : row + piece.shape[2]] += piece
            row += piece.shape[2]
        return [ACTIVATE[self.after](result) if self.after else result]

    def cost(self, top: int, bottom: int) -> Cost:
        main, other = self.main.cost(top, bottom), self.other.cost(top, bottom)
        freed = self.other.standing(top, top) - self.other.standing(top, bottom)
        return Cost(max(main.peak + freed, main.held + other.peak), main.held)

    def standing(self, top: int, bottom: int) -> int:
        return self.main.standing(top, bottom) + self.other.standing(top, bottom)

    def readers(self, bottom: int) -> list[tuple[PlaneRows, int]]:
        return self.main.readers(bottom) + self.other.readers(bottom)

    def work(self) -> int:
        return self.main.work() + self.other.work()
