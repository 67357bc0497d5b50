"""Some ops with a shortcut beside them all: what went in is added to what comes out."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..extent import Extent
from ..layer import Conv, Norm, PixelNorm
from ..program import Op
from ..schedule import LevelSchedule
from ..stream.added import AddedSource
from ..stream.shared import Shared
from ..stream.source import Source
from ..stream.value import Value
from ..stream.walk import Walk
from .squares import Gather, Spread


@dataclass(frozen=True)
class Beside(Op):
    """ops(x) + shortcut(x).

    Without a shortcut of its own x is added itself: its channels repeated where more come out, or, where fewer do, the
    means of those that follow each other. But for the first one the ops want no moments.
    """

    ops: tuple[Op, ...]
    shortcut: Spread | Gather | None = None

    inner_plane = True
    shares_rows = True

    @property
    def name(self) -> str:
        return self.ops[-1].name

    @property
    def norm(self) -> Norm | PixelNorm | None:
        return self.ops[0].norm

    @property
    def upsamples(self) -> bool:
        return any(op.upsamples for op in self.ops)

    @property
    def resamples(self) -> bool:
        return any(op.resamples for op in self.ops)

    @property
    def streams(self) -> bool:
        return self.groups is None

    @property
    def in_time(self) -> bool:
        return any(op.in_time for op in self.ops)

    @property
    def convs(self) -> tuple[Conv, ...]:
        return tuple(conv for op in self.ops for conv in op.convs)

    @property
    def continued(self) -> Op | None:
        shortcut = None if self.shortcut is None else self.shortcut.continued
        ops = tuple(op for op in (op.continued for op in self.ops) if op is not None)
        if len(ops) < len(self.ops) or (shortcut is None) is not (self.shortcut is None):
            return None
        assert shortcut is None or isinstance(shortcut, (Spread, Gather))
        return replace(self, ops=ops, shortcut=shortcut)

    def past_elements(self, source: Extent) -> int:
        elements = 0
        for op in self.ops:
            elements += op.past_elements(source)
            source = op.extent(source)
        return elements

    def extent(self, source: Extent) -> Extent:
        for op in self.ops:
            source = op.extent(source)
        return source

    def flops(self, source: Extent, batch: int) -> int:
        total = 0
        for op in self.ops:
            total += op.flops(source, batch)
            source = op.extent(source)
        return total

    def kept(self, schedule: LevelSchedule, following: Op, ends_level: bool) -> bool:
        return super().kept(schedule, following, ends_level) or (ends_level and self._stores(schedule))

    def _stores(self, schedule: LevelSchedule) -> bool:
        """Whether there is something between its ops, and it is stored."""
        return schedule.store_blocks and len(self.ops) > 1

    def lay(self, walk: Walk, value: Value, level: int, groups: int | None) -> Value:
        if self._stores(walk.schedule[level]):
            return self._stored(walk, value, level)
        if isinstance(self.norm, Norm):
            walk.moments(value, self.norm, level)
        size, lag = self.extent(value.size), sum(conv.kernel // 2 for conv in self.convs)

        def read(top: int, bottom: int, last: bool) -> Source:
            shared = Shared(walk.context, value.size, value.recipe(last), lag)
            x = Value(value.size, lambda top, bottom, last: shared.reader(top, bottom), value.moments)
            result = x
            for op in self.ops:
                result = op.lay(walk, result, level, None)
            main = result.last(top, bottom)  # made first: it is ahead
            return AddedSource(main, self._beside(walk, x, level).last(top, bottom))

        return Value(size, read)

    def _beside(self, walk: Walk, x: Value, level: int) -> Value:
        return x if self.shortcut is None else self.shortcut.lay(walk, x, level, None)

    def _stored(self, walk: Walk, value: Value, level: int) -> Value:
        """One pass for each op but the last, and the input stays for the shortcut: fewer weights at a time."""
        x = value if value.plane is not None else walk.store(value, self.groups, level, self.name)
        assert x.plane is not None
        result = Value(x.size, lambda top, bottom, last: x.again(top, bottom), x.moments, x.plane)
        for op in self.ops[:-1]:
            made = op.lay(walk, result, level, None)
            if made is not result:  # of a picture nothing becomes of what changes frames
                beside = (x.plane,) if result.plane is not x.plane else ()
                result = walk.store(made, None, level, op.name, beside)
        main, other = self.ops[-1].lay(walk, result, level, None), self._beside(walk, x, level)

        def read(top: int, bottom: int, last: bool) -> Source:
            return AddedSource(main.rows(top, bottom, last), other.rows(top, bottom, last))

        return Value(main.size, read)
