"""Mixing the frames of a group, rows by rows: such ops look beyond no row, but their norms are over all frames.

A batch is one group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..extent import Extent
from ..layer import Norm, TimeConv
from ..program import Op
from ..schedule import LevelSchedule
from ..stream.added import AddedSource
from ..stream.fill import norm_fill
from ..stream.moments import Moments
from ..stream.over_frames import MakeFill, TimeConvolvedSource
from ..stream.shared import Shared
from ..stream.source import Source
from ..stream.value import Value
from ..stream.walk import Walk


@dataclass(frozen=True)
class TimeConvolve(Op):
    """A convolution over the frames; at both ends it sees frames of zeros."""

    conv: TimeConv

    shares_rows = True

    @property
    def name(self) -> str:
        return self.conv.name

    def extent(self, source: Extent) -> Extent:
        return source

    def flops(self, source: Extent, batch: int) -> int:
        return self.conv.flops(batch, source)

    def lay(self, walk: Walk, value: Value, level: int, groups: int | None) -> Value:
        def read(top: int, bottom: int, last: bool) -> Source:
            return TimeConvolvedSource(walk.context, self.conv, value.rows(top, bottom, last))

        return Value(value.size, read)


@dataclass(frozen=True)
class TimeResidual(Op):
    """x + alpha * r(x), r being twice GroupNorm over all frames, SiLU and a convolution over the frames.

    That is alpha * (x + r(x)) + (1 - alpha) * x, as temporal blocks have it.
    """

    norm1: Norm
    conv1: TimeConv
    norm2: Norm
    conv2: TimeConv
    alpha: Callable[[Tensor], Tensor]
    """(like) -> the share alpha with the dtype and device of `like`."""

    shares_rows = True

    @property
    def name(self) -> str:
        return self.conv2.name

    @property
    def norm(self) -> Norm:
        return self.norm1

    def extent(self, source: Extent) -> Extent:
        return source._replace(channels=self.conv2.channels)

    def flops(self, source: Extent, batch: int) -> int:
        return sum(conv.flops(batch, source) for conv in (self.conv1, self.conv2))

    def kept(self, schedule: LevelSchedule, following: Op, ends_level: bool) -> bool:
        return schedule.store_blocks or ends_level

    def lay(self, walk: Walk, value: Value, level: int, groups: int | None) -> Value:
        """One pass for the statistics of what is inside; the result is computed whenever it is read."""
        context = walk.context
        first = _over_frames(walk, self.norm1, walk.moments(value, self.norm1, level))
        hidden = TimeConvolvedSource(context, self.conv1, value.every_row(), first)
        second = _over_frames(walk, self.norm2, walk.sweep(self.conv1.name, hidden, self.norm2.groups, level))

        def read(top: int, bottom: int, last: bool) -> Source:
            shared = Shared(context, value.size, value.recipe(last), lag=0)
            inner = TimeConvolvedSource(context, self.conv1, shared.reader(top, bottom), first)
            return AddedSource(
                TimeConvolvedSource(context, self.conv2, inner, second, self.alpha), shared.reader(top, bottom)
            )

        return Value(value.size, read)


def _over_frames(walk: Walk, norm: Norm, moments: Moments) -> MakeFill:
    """The fill of a norm over all frames of the group."""
    return lambda: norm_fill(walk.context, norm, moments.over_images(), "silu")
