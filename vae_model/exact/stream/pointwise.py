"""Rows of a 1x1 convolution, piece by piece, without a window."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from ..layer import Conv
from .context import Context
from .source import Cost, PlaneRows, Rows


class PointwiseRows(Rows):
    """Every piece of the source by itself."""

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
        return self.conv.flops(self.context.batch, rows, self.size.width) + self.source.work()
