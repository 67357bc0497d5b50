"""Nearest x2, then a 3x3 convolution."""

from __future__ import annotations

from dataclasses import dataclass

from ..extent import Extent
from ..layer import Conv
from ..program import Op
from ..schedule import LevelSchedule
from ..stream.source import Source
from ..stream.upsampled import UpsampledSource
from ..stream.value import Value
from ..stream.walk import Walk


@dataclass(frozen=True)
class Upsample(Op):
    """The large plane in between is never made."""

    conv: Conv
    after: str | None = None
    """An activation behind the convolution."""

    shares_rows = True

    @property
    def name(self) -> str:
        return self.conv.name

    @property
    def upsamples(self) -> bool:
        return True

    @property
    def convs(self) -> tuple[Conv, ...]:
        return (self.conv,)

    def extent(self, source: Extent) -> Extent:
        return Extent(self.conv.out_channels, 2 * source.height, 2 * source.width, source.frames)

    def flops(self, source: Extent, batch: int) -> int:
        return self.conv.flops(batch, self.extent(source))

    def kept(self, schedule: LevelSchedule, following: Op, ends_level: bool) -> bool:
        return schedule.store_enlarged and not following.streams

    def lay(self, walk: Walk, value: Value, level: int, groups: int | None) -> Value:
        fast, lean = walk.schedule[level].fast_rows, walk.schedule[level].lean

        def read(top: int, bottom: int, last: bool) -> Source:
            return UpsampledSource(
                *(walk.context, self.conv, top, bottom, value.recipe(last), value.size, None, self.after, fast, lean)
            )

        return Value(self.extent(value.size), read)
