"""Nearest x2 and then a 3x3 convolution, computed on the small plane without a large one in between."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from ...kernels.cuda.strips import copy_pixels
from ...kernels.fold import fold_bytes, fold_upsample
from ...kernels.methods import plan_upsample_tiles
from ..layer import Conv
from ..program import Extent
from .context import Context
from .fast import pays
from .fill import copy_in
from .source import Cost, Recipe
from .window import Windowed


def upsample_window(
    context: Context, window: Tensor, kernels: list[list[Tensor]], bias: Tensor | None, top: int, bottom: int, pad: int
) -> Tensor:
    """Rows top..bottom of the upsampled plane.

    Args:    window: (B, C, n, W) or, with its border columns, (B, C, n, W + 2): the source from row (top - 1) // 2 on.
             kernels: [row parity][column parity], each (out, in, 2, 2). pad: zero columns to add on both sides, 1 or 0.
    Returns: (B, out, bottom - top, 2 * W).
    """
    first, width = (top - 1) // 2, window.shape[3] - 2 + 2 * pad
    out = context.empty(kernels[0][0].shape[0], bottom - top, 2 * width)
    for r in (0, 1):
        start = top + (r - top) % 2  # the first row of this parity
        rows = len(range(start, bottom, 2))
        if rows == 0:
            continue
        source = start // 2 - 1 + r - first
        part = window[:, :, source : source + rows + 1]
        for c in (0, 1):
            # All W + 1 columns are computed: cheaper than cutting one off the input, which would copy it.
            result = functional.conv2d(part, kernels[r][c], bias, padding=(0, pad))
            copy_pixels(out[:, :, start - top :: 2, c::2], result[..., c : c + width])
            del result
    return out


_UPSAMPLED_BORDER = {"zeros": "zeros", "circular": "circular", "replicate": "replicate", "reflect": "replicate"}
"""Borders of the upsampled plane as borders of its source: a reflected row -1 is row 1, that is source row 0."""


class UpsampledRows(Windowed):
    """Nearest x2 and a 3x3 convolution: four 2x2 convolutions of the small plane, or where it pays by tiles."""

    whole = True

    def __init__(
        self,
        context: Context,
        conv: Conv,
        top: int,
        bottom: int,
        source: Recipe,
        source_size: Extent,
        fast_rows: int = 0,
    ) -> None:
        """`fast_rows`: rows of a strip for which a faster method may be used where it pays, 0 for the plain one."""
        fast = fast_rows > 0 and pays(context, conv, source_size.width)
        self._tiles = (
            plan_upsample_tiles(conv.channels, source_size.width, -(-fast_rows // 2), context.threads) if fast else None
        )
        self._source_height = source_size.height
        size = Extent(conv.out_channels, 2 * source_size.height, 2 * source_size.width)
        super().__init__(context, conv, size, top, bottom, source)
        self.work += conv.flops(context.batch, bottom - top, size.width) * 4 // 9
        self._layer: tuple[Tensor | list[list[Tensor]], Tensor | None] | None = None
        self._odd = False

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
        top, pad = self.at, 0 if sum(self.columns) else 1
        if self._layer is None or (top % 2 and not self._odd):
            self._layer = None  # the old one is freed before the new one is made
            self._odd = top % 2 == 1 or (bottom < self.bottom and bottom % 2 == 1)  # so will the next strips begin
            self._layer = self._fold()
        window = self._window(bottom, copy_in)
        self.at = bottom
        weights, bias = self._layer
        if self._tiles is None or not isinstance(weights, Tensor):
            assert isinstance(weights, list)
            return [upsample_window(self.context, window, weights, bias, top, bottom, pad)]
        out, scratch = self.context.empty(self.size.channels, bottom - top, self.size.width), self._scratch()
        for x, y in zip(window.permute(0, 2, 3, 1), out.permute(0, 2, 3, 1), strict=True):
            self._tiles.upsample(x, weights, bias, scratch, y, top, odd=self._odd)
        return [out]

    def _border_columns(self) -> tuple[int, int]:
        return super()._border_columns() if self._tiles is None else self._tiles.columns

    def _own_scratch(self) -> int:
        return 0 if self._tiles is None else max(self._tiles.scratch_bytes, self._tiles.transform_bytes)

    def _product_bytes(self) -> int:
        return 0 if self._tiles is None else self._tiles.product_bytes

    def _fold(self) -> tuple[Tensor | list[list[Tensor]], Tensor | None]:
        weight, bias = self.context.layer_weights(self.conv)
        if self._tiles is not None:
            return self._tiles.transform_weight(weight, odd=self._odd), bias
        order = self.context.memory_format
        return [[fold_upsample(weight, r, c).contiguous(memory_format=order) for c in (0, 1)] for r in (0, 1)], bias

    def _cost(self, top: int, bottom: int) -> Cost:
        cost = super()._cost(top, bottom)
        if top > self.top or self._tiles is not None:
            return cost
        # While kernels are made there is no window yet, and nothing has been read: only planes stand.
        above, below = self.source.top, self._reach(bottom)
        unread = self.source.cost(above, above).stands - self.source.cost(above, below).stands
        window_bytes = (self._end(bottom) - self._first(top)) * self.window_row_bytes
        peak = max(cost.peak, self._folding() + unread - window_bytes)
        planes = sum(plane.cost(plane.top, plane.top).stands for plane in self.planes)
        before, rest = cost.first
        return cost._replace(peak=peak, opening=(max(before, self._weight_bytes() + self._folding() + planes), rest))

    def _folding(self) -> int:
        return fold_bytes(self.conv.in_channels, self.conv.out_channels, self.context.dtype.itemsize)

    def _extra(self, top: int, bottom: int) -> int:
        if self._tiles is not None:
            return 0
        rows = -(-(bottom - top) // 2)
        return rows * self.context.row_bytes(self.size.channels, self.source.size.width + 1)

    def _weight_bytes(self) -> int:
        if self._tiles is not None:
            return self._tiles.weight_bytes
        return self.conv.out_channels * self.conv.in_channels * 16 * self.context.dtype.itemsize
