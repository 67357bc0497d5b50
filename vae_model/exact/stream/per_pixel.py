"""What is done to every pixel by itself: a norm over its channels, an activation, one half of them gating the other."""

from __future__ import annotations

from torch import Tensor

from ...kernels.pixel_norm import part_bytes, pixel_parts
from ..layer import RootNorm
from .context import Context
from .fill import ACTIVATE
from .source import Cost, Source


def normalise(x: Tensor, norm: RootNorm, weight: Tensor, bias: Tensor, activation: str | None = None) -> None:
    """Norm and activation in place, part by part, rounded once; weight and bias (C,) in float32 or better."""
    for (part,) in pixel_parts(x):
        values = part.to(weight.dtype)
        norm.run(values, weight, bias)
        if activation is not None:
            ACTIVATE[activation](values)
        if values is not part:
            part.copy_(values)
        del values  # else it lives on beside the next part's


class PerPixelSource(Source):
    """A norm and an activation, rounded once; in place where the rows are nobody else's."""

    def __init__(self, context: Context, source: Source, norm: RootNorm, activation: str | None) -> None:
        super().__init__(context, source.size, source.top, source.bottom, source)
        self.source, self.norm, self.activation = source, norm, activation
        self.in_place = source.whole or source.fresh
        self.whole, self.fresh = source.whole or not self.in_place, True
        self._numbers: tuple[Tensor, Tensor] | None = None

    def take(self, bottom: int) -> list[Tensor]:
        if bottom <= self.at:
            return []
        self._numbers = self._numbers or self.context.norm_weights(self.norm)
        pieces = self.source.take(bottom)
        if not self.in_place:
            pieces = [self._copy(pieces, bottom - self.at)]
        for piece in pieces:
            normalise(piece, self.norm, *self._numbers, self.activation)
        self.at = bottom
        return pieces

    def _copy(self, pieces: list[Tensor], rows: int) -> Tensor:
        """All of them as one tensor; each is let go as soon as it is there."""
        out, row = self.context.strip(self.size, rows), 0
        while pieces:
            piece = pieces.pop(0)
            out[:, :, row : row + piece.shape[2]] = piece
            row += piece.shape[2]
            del piece
        return out

    def _cost(self, top: int, bottom: int) -> Cost:
        source, size = self.source.cost(top, bottom), (bottom - top) * self.row_bytes
        held, copying = (source.held, 0) if self.in_place else (size, source.held + size)
        dtype = self.context.dtype
        working = part_bytes(size // dtype.itemsize, self.size.channels, dtype, self.context.device.type)
        making, (before, rest) = max(copying, held + working), source.first
        return Cost(max(source.peak, making), held, source.stands, source.parked, (max(before, rest + making), rest))


class GatedSource(Source):
    """(2C, n, W) -> (C, n, W): the first half of the channels times the activated second."""

    fresh = True

    def __init__(self, context: Context, source: Source, activation: str) -> None:
        size = source.size._replace(channels=source.size.channels // 2)
        super().__init__(context, size, source.top, source.bottom, source)
        self.source, self.activation, self.whole = source, activation, source.whole

    def take(self, bottom: int) -> list[Tensor]:
        pieces = self.source.take(bottom)
        self.at = max(self.at, bottom)
        for index, piece in enumerate(pieces):
            values, gate = piece.chunk(2, dim=1)
            out = self.context.strip(self.size, piece.shape[2]).copy_(gate)
            pieces[index] = ACTIVATE[self.activation](out).mul_(values)
            del piece, values, gate
        return pieces

    def _cost(self, top: int, bottom: int) -> Cost:
        source, held = self.source.cost(top, bottom), (bottom - top) * self.row_bytes
        making, (before, rest) = source.held + held, source.first
        opening = max(before, rest + making), rest
        return Cost(max(source.peak, making), held, source.stands, source.parked, opening)
