"""Rows of a convolution, strip by strip. Weights are fetched at the first strip, once a pass."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from ...kernels.methods import Tiles, plan_tiles
from ...kernels.winograd import window_rows
from ..layer import Conv
from ..program import Extent
from .context import Context
from .fast import pays
from .fill import ACTIVATE, copy_in
from .source import Recipe
from .window import Fill, Windowed


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
        source_size: Extent,
        fill: Callable[[], Fill] | None = None,
        after: str | None = None,
        fast_rows: int = 0,
    ) -> None:
        """`fast_rows`: rows of a strip for which a faster method may be used where it pays, 0 for the plain one."""
        fast = fast_rows > 0 and pays(context, conv, source_size.width)
        self._tiles = plan_tiles(conv.channels, source_size.width, fast_rows, context.threads) if fast else None
        self._source_height = source_size.height
        size = Extent(conv.out_channels, conv.out_size(source_size.height), conv.out_size(source_size.width))
        super().__init__(context, conv, size, top, bottom, source)
        self.work += conv.flops(context.batch, bottom - top, size.width)
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
