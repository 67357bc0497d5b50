"""Squares of pixels to channels of cells and back: between two levels, beside one, or as latents are packed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..extent import Extent
from ..layer import Statistics
from ..program import Op, Program
from ..schedule import LevelSchedule
from ..stream.source import Source
from ..stream.squares import Corners, GatheredSource, SpreadSource, Squares
from ..stream.value import Value
from ..stream.walk import Walk
from .standardise import Standardise


@dataclass(frozen=True)
class Spread(Op):
    """(c, h, w) -> (C, 2h, 2w); 1 + n frames to 1 + 2n where the squares say so."""

    squares: Squares
    begins_level: bool = True
    """Whether a resolution level begins with its result; else it belongs to the level before it."""

    shares_rows = True

    @property
    def name(self) -> str:
        return "channels to squares"

    @property
    def upsamples(self) -> bool:
        return self.begins_level

    @property
    def streams(self) -> bool:
        return True

    @property
    def in_time(self) -> bool:
        return self.squares.earlier is not None

    @property
    def continued(self) -> Spread:
        return replace(self, squares=replace(self.squares, continues=True)) if self.in_time else self

    def extent(self, source: Extent) -> Extent:
        frames = self.squares.frames_of_pixels(source.frames)
        return Extent(self.squares.channels, 2 * source.height, 2 * source.width, frames)

    def turned(self) -> Op:
        return replace(self, squares=self.squares.turned)

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
    """(C, 2h, 2w) -> (c, h, w); 1 + 2n frames to 1 + n where the squares say so."""

    squares: Squares
    channels: int
    """c."""
    run: int = 1
    """What the sum of the pixels that share a channel is divided by."""
    begins_level: bool = True

    shares_rows = True

    @property
    def name(self) -> str:
        return "squares to channels"

    @property
    def resamples(self) -> bool:
        return self.begins_level

    @property
    def streams(self) -> bool:
        return True

    @property
    def in_time(self) -> bool:
        return self.squares.earlier is not None

    def extent(self, source: Extent) -> Extent:
        frames = self.squares.frames_of_cells(source.frames)
        return Extent(self.channels, source.height // 2, source.width // 2, frames)

    def turned(self) -> Op:
        return replace(self, squares=self.squares.turned)

    def flops(self, source: Extent, batch: int) -> int:
        return 0

    def lay(self, walk: Walk, value: Value, level: int, groups: int | None) -> Value:
        size = self.extent(value.size)

        def read(top: int, bottom: int, last: bool) -> Source:
            return GatheredSource(walk.context, self.squares, self.run, top, bottom, value.recipe(last), size)

        return Value(size, read)


def shuffled_first(program: Program, statistics: Statistics | None) -> Program:
    """The program of packed latents (4C, h, w), normalised by `statistics` if there are any, from that of raw ones."""
    first = [] if statistics is None else [Standardise(statistics, back=True)]
    spread = Spread(_pixel_shuffle(program.in_channels))
    return Program((*first, spread, *program.ops), 4 * program.in_channels, program.out_channels)


def unshuffled_last(program: Program, statistics: Statistics | None, channels: int) -> Program:
    """The program to packed latents of so many channels from that to moments, or to raw ones."""
    last = [] if statistics is None else [Standardise(statistics, back=False)]
    gather = Gather(_pixel_shuffle(channels // 4), channels, begins_level=False)
    return Program((*program.ops, gather, *last), program.in_channels, channels)


PIXEL_SHUFFLE: Corners = (0, 1, 2, 3)
"""As PyTorch's: row by row, four channels of a cell for each of a pixel."""


def _pixel_shuffle(channels: int) -> Squares:
    return Squares(channels, PIXEL_SHUFFLE, 4)


def pixels_last(program: Program, corners: Corners) -> Program:
    """The program of images (C, 2h, 2w) from one of their squares as channels (4C, h, w), `corners` in this order."""
    channels = program.out_channels // 4
    spread = Spread(Squares(channels, corners, 4), begins_level=False)
    return Program((*program.ops, spread), program.in_channels, channels)


def pixels_first(program: Program, corners: Corners) -> Program:
    """The same of a program that such channels go into."""
    gather = Gather(Squares(program.in_channels // 4, corners, 4), program.in_channels)
    return Program((gather, *program.ops), program.in_channels // 4, program.out_channels)
