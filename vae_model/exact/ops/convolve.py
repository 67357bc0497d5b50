"""A convolution; a norm and an activation may come before it, a function of single values after it."""

from __future__ import annotations

from dataclasses import dataclass

from ..extent import Extent
from ..layer import Conv, Norm, PixelNorm
from ..program import Op
from ..schedule import LevelSchedule
from ..stream.convolved import ConvolvedSource
from ..stream.pointwise import PointwiseSource
from ..stream.source import Source
from ..stream.value import Value
from ..stream.walk import Walk


@dataclass(frozen=True)
class Convolve(Op):
    """A convolution of any stride."""

    conv: Conv
    before_norm: Norm | PixelNorm | None = None
    before: str | None = None
    """The activation behind the norm."""
    after: str | None = None

    shares_rows = True

    @property
    def name(self) -> str:
        return self.conv.name

    @property
    def norm(self) -> Norm | PixelNorm | None:
        return self.before_norm

    @property
    def resamples(self) -> bool:
        return self.conv.stride == 2

    @property
    def streams(self) -> bool:
        return self.groups is None

    @property
    def convs(self) -> tuple[Conv, ...]:
        return (self.conv,)

    def extent(self, source: Extent) -> Extent:
        return self.conv.extent(source)

    def flops(self, source: Extent, batch: int) -> int:
        return self.conv.flops(batch, self.extent(source))

    def kept(self, schedule: LevelSchedule, following: Op, ends_level: bool) -> bool:
        # A strided result has no rows beyond its ends, as a circular convolution behind it wants them; a plane has.
        return (self.conv.circular and self.conv.stride > 1) or super().kept(schedule, following, ends_level)

    def lay(self, walk: Walk, value: Value, level: int, groups: int | None) -> Value:
        fast, lean = walk.schedule[level].fast_rows, walk.schedule[level].lean
        fill = None if self.norm is None else walk.fill(value, self.norm, level, self.before)

        def read(top: int, bottom: int, last: bool) -> Source:
            source = value.recipe(last)
            if self.conv.kernel == 1 and fill is None and self.after is None:
                return PointwiseSource(walk.context, self.conv, source(top, bottom))
            return ConvolvedSource(
                walk.context, self.conv, top, bottom, source, value.size, fill, self.after, fast, lean
            )

        return Value(self.extent(value.size), read)
