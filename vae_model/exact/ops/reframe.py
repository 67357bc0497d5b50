"""Frames of a clip as parts of channels and back: as models grow and pool them, between two convolutions."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..extent import Extent
from ..program import Op
from ..stream.reframed import ReframedSource, Reframing
from ..stream.source import Source
from ..stream.value import Value
from ..stream.walk import Walk


@dataclass(frozen=True)
class Reframe(Op):
    """No value changes, each is in another frame or channel."""

    how: Reframing

    shares_rows = True

    @property
    def name(self) -> str:
        return "frames and channels"

    @property
    def streams(self) -> bool:
        return True

    @property
    def in_time(self) -> bool:
        return True

    @property
    def continued(self) -> Op | None:
        how = self.how.continued
        return None if how is None else replace(self, how=how)

    def extent(self, source: Extent) -> Extent:
        return source._replace(channels=self.how.channels(source.channels), frames=self.how.frames(source.frames))

    def flops(self, source: Extent, batch: int) -> int:
        return 0

    def lay(self, walk: Walk, value: Value, level: int, groups: int | None) -> Value:
        size = self.extent(value.size)

        def read(top: int, bottom: int, last: bool) -> Source:
            return ReframedSource(walk.context, self.how, value.rows(top, bottom, last), size)

        return Value(size, read)
