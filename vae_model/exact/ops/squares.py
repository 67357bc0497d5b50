"""Squares of pixels to channels of cells and back, as a step between two levels or as a shortcut beside one."""

from __future__ import annotations

from dataclasses import dataclass

from ..extent import Extent
from ..program import Op
from ..schedule import LevelSchedule
from ..stream.source import Source
from ..stream.squares import GatheredSource, SpreadSource, Squares
from ..stream.value import Value
from ..stream.walk import Walk


@dataclass(frozen=True)
class Spread(Op):
    """(c, h, w) -> (C, 2h, 2w)."""

    squares: Squares

    shares_rows = True
    turns = False

    @property
    def name(self) -> str:
        return "channels to squares"

    @property
    def upsamples(self) -> bool:
        return True

    @property
    def streams(self) -> bool:
        return True

    def extent(self, source: Extent) -> Extent:
        return Extent(self.squares.channels, 2 * source.height, 2 * source.width, source.frames)

    def flops(self, source: Extent, batch: int) -> int:
        return 0

    def kept(self, schedule: LevelSchedule, following: Op, ends_level: bool) -> bool:
        return schedule.store_enlarged and not following.streams

    def lay(self, walk: Walk, value: Value, level: int, groups: int | None) -> Value:
        size = self.extent(value.size)

        def read(top: int, bottom: int, last: bool) -> Source:
            return SpreadSource(walk.context, self.squares, top, bottom, value.recipe(last), size)

        return Value(size, read)


@dataclass(frozen=True)
class Gather(Op):
    """(C, 2h, 2w) -> (c, h, w)."""

    squares: Squares
    channels: int
    """c."""
    run: int = 1
    """What the sum of the pixels that share a channel is divided by."""

    shares_rows = True
    turns = False

    @property
    def name(self) -> str:
        return "squares to channels"

    @property
    def resamples(self) -> bool:
        return True

    @property
    def streams(self) -> bool:
        return True

    def extent(self, source: Extent) -> Extent:
        return Extent(self.channels, source.height // 2, source.width // 2, source.frames)

    def flops(self, source: Extent, batch: int) -> int:
        return 0

    def lay(self, walk: Walk, value: Value, level: int, groups: int | None) -> Value:
        size = self.extent(value.size)

        def read(top: int, bottom: int, last: bool) -> Source:
            return GatheredSource(walk.context, self.squares, self.run, top, bottom, value.recipe(last), size)

        return Value(size, read)
