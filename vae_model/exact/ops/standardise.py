"""Channels normalised by stored statistics, or given back what these took."""

from __future__ import annotations

from dataclasses import dataclass

from ..extent import Extent
from ..layer import Statistics
from ..program import Op
from ..stream.source import Source
from ..stream.standardised import StandardisedSource
from ..stream.value import Value
from ..stream.walk import Walk


@dataclass(frozen=True)
class Standardise(Op):
    """(x - mean) / standard deviation of every channel, or back."""

    statistics: Statistics
    back: bool

    shares_rows = True

    @property
    def name(self) -> str:
        return "statistics of the latents"

    @property
    def streams(self) -> bool:
        return True

    def extent(self, source: Extent) -> Extent:
        return source

    def flops(self, source: Extent, batch: int) -> int:
        return 0

    def lay(self, walk: Walk, value: Value, level: int, groups: int | None) -> Value:
        def read(top: int, bottom: int, last: bool) -> Source:
            return StandardisedSource(walk.context, self.statistics, self.back, value.rows(top, bottom, last))

        return Value(value.size, read)
