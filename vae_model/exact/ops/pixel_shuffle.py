"""Squares of latent cells in channels to cells and back, normalised by stored statistics where there are any."""

from __future__ import annotations

from dataclasses import dataclass

from ..extent import Extent
from ..layer import Statistics
from ..program import Op, Program
from ..stream.shuffled import ShuffledSource, UnshuffledSource
from ..stream.source import Source
from ..stream.value import Value
from ..stream.walk import Walk


@dataclass(frozen=True)
class PixelShuffle(Op):
    """(4C, h, w) -> (C, 2h, 2w)."""

    statistics: Statistics | None

    shares_rows = True
    turns = False

    @property
    def name(self) -> str:
        return "pixel shuffle"

    def extent(self, source: Extent) -> Extent:
        return Extent(source.channels // 4, 2 * source.height, 2 * source.width, source.frames)

    def flops(self, source: Extent, batch: int) -> int:
        return 0

    def lay(self, walk: Walk, value: Value, level: int, groups: int | None) -> Value:
        size = self.extent(value.size)

        def read(top: int, bottom: int, last: bool) -> Source:
            return ShuffledSource(walk.context, self.statistics, top, bottom, value.recipe(last), size)

        return Value(size, read)


@dataclass(frozen=True)
class PixelUnshuffle(Op):
    """The inverse, of the first C channels: (>= C, 2h, 2w) -> (4C, h, w)."""

    statistics: Statistics | None
    channels: int
    """4C."""

    shares_rows = True
    turns = False

    @property
    def name(self) -> str:
        return "pixel unshuffle"

    def extent(self, source: Extent) -> Extent:
        return Extent(self.channels, source.height // 2, source.width // 2, source.frames)

    def flops(self, source: Extent, batch: int) -> int:
        return 0

    def lay(self, walk: Walk, value: Value, level: int, groups: int | None) -> Value:
        size = self.extent(value.size)

        def read(top: int, bottom: int, last: bool) -> Source:
            return UnshuffledSource(walk.context, self.statistics, top, bottom, value.recipe(last), size)

        return Value(size, read)


def shuffled_first(program: Program, statistics: Statistics | None) -> Program:
    """The program of packed latents, normalised by `statistics` if there are any, from that of raw ones."""
    return Program((PixelShuffle(statistics), *program.ops), 4 * program.in_channels, program.out_channels)


def unshuffled_last(program: Program, statistics: Statistics | None, channels: int) -> Program:
    """The program to packed latents of so many channels from that to moments, or to raw ones."""
    return Program((*program.ops, PixelUnshuffle(statistics, channels)), program.in_channels, channels)
