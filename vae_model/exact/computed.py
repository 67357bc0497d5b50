"""Sources of rows that compute: convolution and sum. Weights are fetched at the first strip, once a pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from .context import Context
from .rows import Cost, PlaneRows, Recipe, Rows
from .spec import Conv
from .step import Size
from .tiles import Tiles, plan_tiles
from .windowed import Fill, Windowed
from .winograd import pays, window_rows

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


class ConvolvedRows(Windowed):
    """A convolution of any stride, with what stands before it and a function of single values behind it."""

    whole = True

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
        fast_rows: int = 0,
    ) -> None:
        """`fast_rows`: rows of a strip for which a faster method may be used where it pays, 0 for the plain one."""
        fast = fast_rows > 0 and pays(context, conv, source_size.width)
        self._tiles = plan_tiles(conv, source_size.width, fast_rows) if fast else None
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
            self._layer = (fill, *self._weights())
        fill, weight, bias = self._layer
        window, rows = self._window(bottom, fill), bottom - self.at
        self.at = bottom
        if self._tiles is not None:
            out = self._by_tiles(self._tiles, window, weight, bias, rows)
        else:
            pad = 0 if sum(self.columns) else self.conv.pad_before
            out = functional.conv2d(window, weight, bias, stride=self.conv.stride, padding=(0, pad))
        return [ACTIVATE[self.after](out) if self.after else out]

    def _weights(self) -> tuple[Tensor, Tensor | None]:
        if self._tiles is None:
            return self.context.conv_weights(self.conv)
        weight, bias = self.context.layer_weights(self.conv)
        return self._tiles.transform_weight(weight), bias

    def _by_tiles(self, tiles: Tiles, window: Tensor, weight: Tensor, bias: Tensor | None, rows: int) -> Tensor:
        out, scratch = self.context.empty(self.size.channels, rows, self.size.width), self._scratch()
        for x, y in zip(window.permute(0, 2, 3, 1), out.permute(0, 2, 3, 1), strict=True):
            tiles.convolve(x, weight, bias, scratch, y)
        return out

    def _border_columns(self) -> tuple[int, int]:
        return super()._border_columns() if self._tiles is None else self._tiles.columns

    def _rows_below(self, rows: int) -> int:
        return 0 if self._tiles is None else window_rows(rows) - rows - 2

    def _own_scratch(self) -> int:
        return 0 if self._tiles is None else max(self._tiles.scratch_bytes, self._tiles.transform_bytes)

    def _product_bytes(self) -> int:
        return 0 if self._tiles is None else self._tiles.product_bytes

    def _weight_bytes(self) -> int:
        return super()._weight_bytes() if self._tiles is None else self._tiles.weight_bytes

    def _fill_bytes(self, source_bytes: int) -> int:
        work_bytes: Callable[[int], int] | None = getattr(self.make_fill, "work_bytes", None)
        return 0 if work_bytes is None else work_bytes(source_bytes)

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

    def first(self, top: int, bottom: int) -> tuple[int, int]:
        weights, out = self.context.weight_bytes(self.conv), (bottom - top) * self.row_bytes
        before, rest = self.source.first(top, bottom)
        return weights + max(before, rest + self.source.cost(top, bottom).held + out), weights + rest

    def readers(self, bottom: int) -> list[tuple[PlaneRows, int]]:
        return self.source.readers(bottom)

    def scratch_bytes(self) -> int:
        return self.source.scratch_bytes()

    def work(self) -> int:
        rows = self.bottom - self.top
        return conv_work(self.conv, self.context.batch, rows, self.size.width) + self.source.work()


class AddedRows(Rows):
    """The sum of two sources; what `main` returns is fresh, so the other is added into it."""

    whole = True

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

    def first(self, top: int, bottom: int) -> tuple[int, int]:
        before, rest = self.main.first(top, bottom)
        unread, read = self.other.standing(top, top), self.other.standing(top, bottom)
        held = self.main.cost(top, bottom).held
        peak = max(before + unread, rest + held + read + self.other.cost(top, bottom).peak)
        return peak, rest + self.other.first(top, bottom)[1]

    def readers(self, bottom: int) -> list[tuple[PlaneRows, int]]:
        return self.main.readers(bottom) + self.other.readers(bottom)

    def scratch_bytes(self) -> int:
        return max(self.main.scratch_bytes(), self.other.scratch_bytes())

    def work(self) -> int:
        return self.main.work() + self.other.work()
