"""Rows of a convolution, strip by strip."""

from __future__ import annotations

from collections.abc import Callable

from ..layer import Conv
from ..program import Extent
from .context import Context, Fill
from .source import Recipe
from .window import Windowed


class ConvolvedRows(Windowed):
    """A convolution of any stride, with what stands before it and a function of single values behind it."""

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
        size = Extent(conv.out_channels, conv.out_size(source_size.height), conv.out_size(source_size.width))
        super().__init__(context, conv, size, top, bottom, source, source_size, fast_rows)
        self.make_fill, self.after = fill or self.make_fill, after
        self.fill_bytes = getattr(fill, "work_bytes", None)
        self.work += conv.flops(context.batch, bottom - top, size.width)

    def _first(self, row: int) -> int:
        return row * self.conv.stride - self.conv.pad_before

    def _end(self, bottom: int) -> int:
        return (bottom - 1) * self.conv.stride - self.conv.pad_before + self.conv.kernel
