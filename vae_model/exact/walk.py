"""From a program and a schedule to passes: what is stored, what is computed again, and in which order it is read.

The walk is the same for running and for planning; they differ in what they do with each pass they are handed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from .attend import AttentionPass
from .computed import AddedRows, ConvolvedRows, PointwiseRows
from .context import Context
from .enlarged import EnlargedRows
from .moments import Moments
from .passes import Emit, Pass, Sink
from .patches import PackedRows, UnpackedRows
from .plane import Plane
from .rows import InputRows, Recipe, Rows, Source
from .schedule import LevelSchedule, Schedule
from .shared import Shared
from .spec import Conv, Norm, PixelNorm
from .step import Attend, Convolve, Enlarge, Pack, Program, Residual, Size, Step, TinyBlock, Unpack, step_size
from .temporal import walk_time_convolve, walk_time_residual
from .temporal_program import TimeConvolve, TimeResidual
from .tiny_walk import walk_tiny_block
from .value import Value, fill_maker, stored
from .windowed import Fill


class Walk:
    """One image or batch going through a program. `perform` gets every pass, in order."""

    def __init__(
        self,
        program: Program,
        schedule: Schedule,
        context: Context,
        perform: Callable[[Pass | AttentionPass], None],
        emit: Emit | None = None,
    ) -> None:
        if len(schedule) != program.level_count:
            raise ValueError(
                f"schedule: expected {program.level_count} levels, got {len(schedule)}: plan for this program"
            )
        self.program, self.schedule, self.context = program, schedule, context
        self.perform, self.emit = perform, emit
        self.levels = program.levels

    def start(self, height: int, width: int, source: Source | None) -> Value:
        """The input as a value."""
        size = Size(self.program.in_channels, height, width)

        def read(top: int, bottom: int, last: bool) -> Rows:
            return InputRows(self.context, size, top, bottom, source)

        return Value(size, read)

    def run(self, value: Value) -> None:
        """All steps, then the result to `emit`."""
        steps = self.program.steps
        for index in range(len(steps)):
            value = self.step(index, value)
        self.finish(value)

    def finish(self, value: Value) -> None:
        """The last pass: the result goes to `emit`."""
        sink = Sink(value.last(0, value.size.height), emit=self.emit)
        self._perform("output", self.levels[-1], [sink], value.size)

    def step(self, index: int, value: Value) -> Value:
        """One step; its result is stored where the schedule or the next step asks for it."""
        step, level = self.program.steps[index], self.levels[index]
        following = self.program.steps[index + 1] if index + 1 < len(self.program.steps) else None
        size = step_size(step, value.size)
        groups = _groups(following)
        if isinstance(step, Attend):
            return self._attend(step, value, groups, level)
        make: dict[type, Callable[..., Value]] = {
            Convolve: self._convolve,
            Residual: self._residual,
            Enlarge: self._enlarge,
            TinyBlock: partial(walk_tiny_block, self.context, self._perform),
            TimeResidual: partial(walk_time_residual, self.context, self._moments, self._perform),
            TimeConvolve: partial(walk_time_convolve, self.context),
            Unpack: self._unpack,
            Pack: self._pack,
        }
        result = make[type(step)](step, value, size, level)
        if self._stored(index):
            return self._store(result, groups, level, _name(step))
        return result

    def _stored(self, index: int) -> bool:
        """Whether the result of step `index` becomes a plane."""
        steps = self.program.steps
        if index + 1 == len(steps):
            return False
        step, following, level = steps[index], steps[index + 1], self.levels[index]
        schedule = self.schedule[level]
        if isinstance(following, Attend):
            return True
        if isinstance(step, Enlarge):
            return schedule.store_enlarged and not _streams(following)
        if isinstance(step, (Residual, TimeResidual)):
            return schedule.store_blocks or self.levels[index + 1] != level
        # A strided result has no rows beyond its ends, as a circular convolution behind it wants them; a plane has.
        ends = isinstance(step, Convolve) and step.conv.circular and step.conv.stride > 1
        return ends or _groups(following) is not None or _needs_sweep(following)

    # -- single steps ----------------------------------------------------------------------------------------------

    def _convolve(self, step: Convolve, value: Value, size: Size, level: int) -> Value:
        fast = self.schedule[level].fast_rows
        fill = None if step.norm is None else self._fill(value, step.norm, level, step.before)

        def read(top: int, bottom: int, last: bool) -> Rows:
            source = value.last if last else value.again
            if step.conv.kernel == 1 and fill is None and step.after is None:
                return PointwiseRows(self.context, step.conv, source(top, bottom))
            return ConvolvedRows(self.context, step.conv, top, bottom, source, value.size, fill, step.after, fast)

        return Value(size, read)

    def _enlarge(self, step: Enlarge, value: Value, size: Size, level: int) -> Value:
        fast = self.schedule[level].fast_rows

        def read(top: int, bottom: int, last: bool) -> Rows:
            source = value.last if last else value.again
            return EnlargedRows(self.context, step.conv, top, bottom, source, value.size, fast)

        return Value(size, read)

    def _unpack(self, step: Unpack, value: Value, size: Size, level: int) -> Value:
        def read(top: int, bottom: int, last: bool) -> Rows:
            return UnpackedRows(self.context, step.statistics, top, bottom, value.last if last else value.again, size)

        return Value(size, read)

    def _pack(self, step: Pack, value: Value, size: Size, level: int) -> Value:
        def read(top: int, bottom: int, last: bool) -> Rows:
            return PackedRows(self.context, step.statistics, top, bottom, value.last if last else value.again, size)

        return Value(size, read)

    def _residual(self, step: Residual, value: Value, size: Size, level: int) -> Value:
        context, fast = self.context, self.schedule[level].fast_rows
        first = self._fill(value, step.norm1, level, "silu")
        moments = Moments(step.norm2.groups) if isinstance(step.norm2, Norm) else None
        second = fill_maker(context, step.norm2, moments, "silu")

        def hidden(source: Recipe) -> Recipe:
            return partial(_normed, context, step.conv1, source, value.size, first, fast)

        def result(source: Recipe) -> Recipe:
            return partial(_normed, context, step.conv2, source, size, second, fast)

        def skip(rows: Rows) -> Rows:
            return rows if step.shortcut is None else PointwiseRows(context, step.shortcut, rows)

        # Without statistics nothing is computed twice, so there is no reason to store what is inside.
        if self.schedule[level].store_hidden and moments is not None:
            inner, kept = self._store_hidden(step, value, size, level, hidden, skip, moments)

            def from_stored(top: int, bottom: int, last: bool) -> Rows:
                return AddedRows(result(inner.last if last else inner.again)(top, bottom), kept.rows(top, bottom, last))

            return Value(size, from_stored)
        if moments is not None:
            sweep = Sink(hidden(value.again)(0, size.height), moments=moments)
            self._perform(f"{step.conv1.name} (statistics)", level, [sweep], size)

        def computed(top: int, bottom: int, last: bool) -> Rows:
            shared = Shared(context, value.size, value.last if last else value.again, lag=2)
            main = result(hidden(shared.reader))(top, bottom)
            return AddedRows(main, skip(shared.reader(top, bottom)))

        return Value(size, computed)

    def _store_hidden(
        self,
        step: Residual,
        value: Value,
        size: Size,
        level: int,
        hidden: Callable[[Recipe], Recipe],
        skip: Callable[[Rows], Rows],
        moments: Moments,
    ) -> tuple[Value, Value]:
        """The pass that stores the inner plane; the block's input stays, or its shortcut is stored along with it."""
        height = size.height
        inner = self._plane(size, level)
        if value.plane is not None and step.shortcut is None:
            sinks = [Sink(hidden(value.again)(0, height), inner, moments)]
            self._perform(step.conv1.name, level, sinks, size)
            return stored(inner), value
        kept = self._plane(size, level)
        shared = Shared(self.context, value.size, value.last, lag=1)
        main = hidden(shared.reader)(0, height)
        sinks = [Sink(main, inner, moments), Sink(skip(shared.reader(0, height)), kept)]
        self._perform(step.conv1.name, level, sinks, size)
        return stored(inner), stored(kept)

    def _attend(self, step: Attend, value: Value, groups: int | None, level: int) -> Value:
        assert value.plane is not None  # a plane always stands before attention
        moments = None if groups is None else Moments(groups)
        target = self._plane(value.size, level)
        fill = self._fill(value, step.norm, level, None)
        stream = self.schedule[level].stream_attention
        self.perform(AttentionPass(self.context, step, level, value.plane, target, moments, fill, stream))
        return Value(value.size, stored(target).rows, moments, target)

    # -- planes and passes -----------------------------------------------------------------------------------------

    def _fill(self, value: Value, norm: Norm | PixelNorm, level: int, activation: str | None) -> Callable[[], Fill]:
        moments = self._moments(value, norm, level) if isinstance(norm, Norm) else None
        return fill_maker(self.context, norm, moments, activation)

    def _moments(self, value: Value, norm: Norm, level: int) -> Moments:
        """Those collected when the value was stored, else a pass for nothing but them."""
        if value.moments is None:
            value.moments = Moments(norm.groups)
            sweep = Sink(value.again(0, value.size.height), moments=value.moments)
            self._perform(f"{norm.name} (statistics)", level, [sweep], value.size)
        return value.moments

    def _store(self, value: Value, groups: int | None, level: int, name: str) -> Value:
        plane = self._plane(value.size, level)
        moments = None if groups is None else Moments(groups)
        self._perform(name, level, [Sink(value.last(0, value.size.height), plane, moments)], value.size)
        return Value(value.size, stored(plane).rows, moments, plane)

    def _plane(self, size: Size, level: int) -> Plane:
        schedule: LevelSchedule = self.schedule[level]
        return Plane(self.context, size, schedule.strip_rows, schedule.device_share)

    def _perform(self, name: str, level: int, sinks: list[Sink], size: Size) -> None:
        self.perform(Pass(name, level, sinks, size.height, self.schedule[level].strip_rows))


def _normed(
    context: Context,
    conv: Conv,
    source: Recipe,
    size: Size,
    fill: Callable[[], Fill],
    fast_rows: int,
    top: int,
    bottom: int,
) -> Rows:
    return ConvolvedRows(context, conv, top, bottom, source, size, fill, None, fast_rows)


def _groups(step: Step | None) -> int | None:
    """Groups of the norm that a step begins with."""
    norm = step.norm1 if isinstance(step, (Residual, TimeResidual)) else getattr(step, "norm", None)
    return getattr(norm, "groups", None)


def _needs_sweep(step: Step) -> bool:
    """Whether a step reads its input twice, for statistics of something computed from it."""
    return isinstance(step, TinyBlock) and step.pool is not None


def _streams(step: Step) -> bool:
    """Whether a step can follow without anything being stored."""
    if isinstance(step, Residual):
        return not step.sweeps
    return isinstance(step, TinyBlock) or (isinstance(step, Convolve) and not isinstance(step.norm, Norm))


def _name(step: Step) -> str:
    if isinstance(step, (Residual, TimeResidual)):
        return step.conv2.name
    return step.convs[2].name if isinstance(step, TinyBlock) else getattr(step, "conv").name  # noqa: B009
