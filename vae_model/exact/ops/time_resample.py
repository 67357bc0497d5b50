"""Twice as many frames, or half as many. Of a clip of 1 + n frames the first is a picture of its own and stays."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..extent import Extent
from ..layer import TimeConv
from ..program import Op
from ..stream.source import Source
from ..stream.time_resampled import TimeResampledSource
from ..stream.value import Value
from ..stream.walk import Walk


@dataclass(frozen=True)
class TimeResample(Op):
    """1 + n frames to 1 + 2n, or 1 + 2n to 1 + n, by a convolution over them; a picture as it is."""

    conv: TimeConv
    up: bool
    """Each result is two frames, the halves of its channels; it sees zeros where the first frame would be."""
    continues: bool = False
    """Whether the first frame of the clip came before: all frames are doubled."""

    shares_rows = True

    @property
    def name(self) -> str:
        return self.conv.name

    @property
    def streams(self) -> bool:
        return True

    @property
    def in_time(self) -> bool:
        return True

    @property
    def continued(self) -> Op | None:
        return replace(self, continues=True) if self.up else None

    def past_elements(self, source: Extent) -> int:
        return (self.conv.kernel - 1) * self.conv.channels * source.height * source.width

    def extent(self, source: Extent) -> Extent:
        if self.continues:
            return source._replace(frames=2 * source.frames)
        more = source.frames - 1
        return source._replace(frames=1 + (2 * more if self.up else more // 2))

    def flops(self, source: Extent, batch: int) -> int:
        results = source.frames - (not self.continues) if self.up else (source.frames - 1) // 2
        return (1 + self.up) * self.conv.flops(batch, source._replace(frames=results))

    def lay(self, walk: Walk, value: Value, level: int, groups: int | None) -> Value:
        size = self.extent(value.size)
        if value.size.frames == 1 and not self.continues:
            return value

        def read(top: int, bottom: int, last: bool) -> Source:
            rows = value.rows(top, bottom, last)
            return TimeResampledSource(walk.context, self.conv, rows, size, 1 if self.up else 2, self.continues)

        return Value(size, read)
