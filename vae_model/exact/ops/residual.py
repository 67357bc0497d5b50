"""A residual block: its inner plane is stored, or its first convolution computed twice, as the schedule has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..extent import Extent
from ..layer import Conv, Norm, PixelNorm
from ..program import Op
from ..schedule import LevelSchedule
from ..stream.added import AddedSource
from ..stream.context import Fill
from ..stream.convolved import ConvolvedSource
from ..stream.fill import fill_maker
from ..stream.moments import Moments
from ..stream.passes import Sink
from ..stream.pointwise import PointwiseSource
from ..stream.shared import Shared
from ..stream.source import MakeSource, Source
from ..stream.value import Value, stored
from ..stream.walk import Walk


@dataclass(frozen=True)
class Residual(Op):
    """norm1, SiLU, conv1, norm2, SiLU, conv2, plus the input or its 1x1 shortcut."""

    norm1: Norm | PixelNorm
    conv1: Conv
    norm2: Norm | PixelNorm
    conv2: Conv
    shortcut: Conv | None

    inner_plane = True
    shares_rows = True

    @property
    def name(self) -> str:
        return self.conv2.name

    @property
    def norm(self) -> Norm | PixelNorm:
        return self.norm1

    @property
    def streams(self) -> bool:
        # With statistics it needs its input once more after these.
        return not isinstance(self.norm1, Norm) and not isinstance(self.norm2, Norm)

    @property
    def convs(self) -> tuple[Conv, ...]:
        return self.conv1, self.conv2

    def extent(self, source: Extent) -> Extent:
        return source._replace(channels=self.conv2.out_channels)

    def flops(self, source: Extent, batch: int) -> int:
        convs = [self.conv1, self.conv2, *([self.shortcut] if self.shortcut else [])]
        return sum(conv.flops(batch, source) for conv in convs)

    def kept(self, schedule: LevelSchedule, following: Op, ends_level: bool) -> bool:
        return schedule.store_blocks or (ends_level and (schedule.store_ends or not self.streams))

    def lay(self, walk: Walk, value: Value, level: int, groups: int | None) -> Value:
        size, context, schedule = self.extent(value.size), walk.context, walk.schedule[level]
        first = walk.fill(value, self.norm1, level, "silu")

        def hidden(source: MakeSource) -> MakeSource:
            return _normed(walk, self.conv1, source, value.size, first, schedule)

        # Without statistics nothing is computed twice, so there is no reason to store what is inside.
        if isinstance(self.norm2, Norm) and schedule.store_hidden:
            moments = Moments(self.norm2.groups)
            inner, kept = self._store_hidden(walk, value, level, hidden, moments)
        else:
            inner, kept, moments = None, None, None
            if isinstance(self.norm2, Norm):
                every_row = hidden(value.again)(0, size.height)
                moments = walk.sweep(self.conv1.name, every_row, self.norm2.groups, level)
        second = fill_maker(context, self.norm2, moments, "silu")

        def result(source: MakeSource) -> MakeSource:
            return _normed(walk, self.conv2, source, size, second, schedule)

        def read(top: int, bottom: int, last: bool) -> Source:
            if inner is not None and kept is not None:
                return AddedSource(result(inner.recipe(last))(top, bottom), kept.rows(top, bottom, last))
            shared = Shared(context, value.size, value.recipe(last), lag=2)
            main = result(hidden(shared.reader))(top, bottom)
            return AddedSource(main, self._skip(walk, shared.reader(top, bottom)))

        return Value(size, read)

    def _skip(self, walk: Walk, rows: Source) -> Source:
        return rows if self.shortcut is None else PointwiseSource(walk.context, self.shortcut, rows)

    def _store_hidden(
        self, walk: Walk, value: Value, level: int, hidden: Callable[[MakeSource], MakeSource], moments: Moments
    ) -> tuple[Value, Value]:
        """The pass that stores the inner plane; the block's input stays, or its shortcut is stored along with it."""
        size = self.extent(value.size)
        inner = walk.plane(size, level)
        if value.plane is not None and self.shortcut is None:
            sinks = [Sink(hidden(value.again)(0, size.height), inner, moments)]
            walk.pull(self.conv1.name, level, sinks, size)
            return stored(inner), value
        kept = walk.plane(size, level)
        shared = Shared(walk.context, value.size, value.last, lag=1)
        main = hidden(shared.reader)(0, size.height)
        sinks = [Sink(main, inner, moments), Sink(self._skip(walk, shared.reader(0, size.height)), kept)]
        walk.pull(self.conv1.name, level, sinks, size)
        return stored(inner), stored(kept)


def _normed(
    walk: Walk, conv: Conv, source: MakeSource, size: Extent, fill: Callable[[], Fill], schedule: LevelSchedule
) -> MakeSource:
    def make(top: int, bottom: int) -> Source:
        return ConvolvedSource(
            walk.context, conv, top, bottom, source, size, fill, None, schedule.fast_rows, schedule.lean
        )

    return make
