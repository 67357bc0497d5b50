"""A norm over the channels of every pixel, an activation, and one half of the channels gating the other."""

from __future__ import annotations

from dataclasses import dataclass

from ..extent import Extent
from ..layer import RootNorm
from ..program import Op
from ..stream.per_pixel import GatedSource, PerPixelSource
from ..stream.source import Source
from ..stream.value import Value
from ..stream.walk import Walk


@dataclass(frozen=True)
class PerPixel(Op):
    """norm(x), then the activation."""

    of: RootNorm
    activation: str | None = None

    shares_rows = True

    @property
    def name(self) -> str:
        return self.of.name

    @property
    def streams(self) -> bool:
        return True

    def extent(self, source: Extent) -> Extent:
        return source

    def flops(self, source: Extent, batch: int) -> int:
        return 0

    def lay(self, walk: Walk, value: Value, level: int, groups: int | None) -> Value:
        def read(top: int, bottom: int, last: bool) -> Source:
            return PerPixelSource(walk.context, value.rows(top, bottom, last), self.of, self.activation)

        return Value(value.size, read)


@dataclass(frozen=True)
class Gate(Op):
    """(2C, H, W) -> (C, H, W): the first half times the activated second."""

    activation: str

    shares_rows = True

    @property
    def name(self) -> str:
        return "gate"

    @property
    def streams(self) -> bool:
        return True

    def extent(self, source: Extent) -> Extent:
        return source._replace(channels=source.channels // 2)

    def flops(self, source: Extent, batch: int) -> int:
        return 0

    def lay(self, walk: Walk, value: Value, level: int, groups: int | None) -> Value:
        def read(top: int, bottom: int, last: bool) -> Source:
            return GatedSource(walk.context, value.rows(top, bottom, last), self.activation)

        return Value(self.extent(value.size), read)
