"""Rows of a 1x1 convolution, piece by piece, without a window."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from ..layer import Conv
from .context import Context
from .source import Cost, Source


class PointwiseSource(Source):
    """Every piece of the source by itself."""

    fresh = True

    def __init__(self, context: Context, conv: Conv, source: Source) -> None:
        size = source.size._replace(channels=conv.out_channels)
        super().__init__(context, size, source.top, source.bottom, source)
        self.conv, self.source = conv, source
        self.work += conv.flops(context.batch, size._replace(height=self.bottom - self.top))
        self._weights: tuple[Tensor, Tensor | None] | None = None

    def take(self, bottom: int) -> list[Tensor]:
        self._weights = self._weights or self.context.conv_weights(self.conv)
        pieces = self.source.take(bottom)
        self.at = bottom
        for index, piece in enumerate(pieces):
            pieces[index] = functional.conv2d(piece, *self._weights, groups=self.conv.groups)
        return pieces

    def _cost(self, top: int, bottom: int) -> Cost:
        source, held = self.source.cost(top, bottom), (bottom - top) * self.row_bytes
        making = source.held + held
        if top > self.top:
            return Cost(max(source.peak, making), held, source.stands, source.parked)
        before, rest = source.first
        opening = max(before, rest + making), rest
        return Cost(max(source.peak, making), held, source.stands, source.parked, opening)
