"""From a program and a schedule to passes: what is stored, what is computed again, and in which order it is read.

The walk is the same for running and for planning; they differ in what they do with each pass they are handed. It asks
the ops what they want and never which they are.
"""

from __future__ import annotations

from collections.abc import Callable

from ..extent import Extent
from ..layer import Norm, PixelNorm
from ..program import Program
from ..schedule import Schedule
from .context import Context, Fill
from .fill import fill_maker
from .moments import Moments
from .passes import Emit, Pass, Performable, Sink
from .plane import Plane
from .source import InputSource, ReadInput, Source
from .value import Value, stored


class Walk:
    """One image or batch going through a program. `perform` gets every pass, in order."""

    def __init__(
        self,
        program: Program,
        schedule: Schedule,
        context: Context,
        perform: Callable[[Performable], None],
        emit: Emit | None = None,
    ) -> None:
        if len(schedule) != program.level_count:
            raise ValueError(
                f"schedule: expected {program.level_count} levels, got {len(schedule)}: plan for this program"
            )
        self.program, self.schedule, self.context = program, schedule, context
        self.perform, self.emit = perform, emit
        self.levels = program.levels

    def start(self, height: int, width: int, frames: int, source: ReadInput | None) -> Value:
        """The input as a value."""
        size = Extent(self.program.in_channels, height, width, frames)

        def read(top: int, bottom: int, last: bool) -> Source:
            return InputSource(self.context, size, top, bottom, source)

        return Value(size, read)

    def run(self, value: Value) -> None:
        """All ops, then the result to `emit`."""
        for index in range(len(self.levels)):
            value = self.lay(index, value)
        self.finish(value)

    def finish(self, value: Value) -> None:
        """The last pass: the result goes to `emit`."""
        sink = Sink(value.last(0, value.size.height), emit=self.emit)
        self.pull("output", self.levels[-1], [sink], value.size)

    def lay(self, index: int, value: Value) -> Value:
        """One op; its result is stored where the schedule or the next op asks for it."""
        op, level = self.program.ops[index], self.levels[index]
        following = self.program.ops[index + 1] if index + 1 < len(self.levels) else None
        result = op.lay(self, value, level, None if following is None else following.groups)
        if result.plane is not None or following is None:
            return result
        ends_level = self.levels[index + 1] != level
        if following.at_once or op.kept(self.schedule[level], following, ends_level):
            return self.store(result, following.groups, level, op.name)
        return result

    # -- what ops ask for --------------------------------------------------------------------------------------------

    def fill(self, value: Value, norm: Norm | PixelNorm, level: int, activation: str | None) -> Callable[[], Fill]:
        """What makes the fill of a norm of this value."""
        moments = self.moments(value, norm, level) if isinstance(norm, Norm) else None
        return fill_maker(self.context, norm, moments, activation)

    def moments(self, value: Value, norm: Norm, level: int) -> Moments:
        """Those collected when the value was stored, else a pass for nothing but them."""
        if value.moments is None:
            value.moments = self.sweep(norm.name, value.every_row(), norm.groups, level)
        return value.moments

    def sweep(self, name: str, rows: Source, groups: int, level: int) -> Moments:
        """A pass over these rows for nothing but their moments."""
        moments = Moments(groups)
        self.pull(f"{name} (statistics)", level, [Sink(rows, moments=moments)], rows.size)
        return moments

    def store(self, value: Value, groups: int | None, level: int, name: str, beside: tuple[Plane, ...] = ()) -> Value:
        """A pass that puts a value into a plane, with moments of so many groups. `beside`: planes that stay for later
        passes and that this one does not read."""
        plane = self.plane(value.size, level)
        moments = None if groups is None else Moments(groups)
        self.pull(name, level, [Sink(value.last(0, value.size.height), plane, moments)], value.size, beside)
        return Value(value.size, stored(plane).rows, moments, plane)

    def plane(self, size: Extent, level: int) -> Plane:
        """A new plane as the schedule has it."""
        schedule = self.schedule[level]
        return Plane(self.context, size, schedule.strip_rows, schedule.device_share)

    def pull(self, name: str, level: int, sinks: list[Sink], size: Extent, beside: tuple[Plane, ...] = ()) -> None:
        """A pass over rows of that size."""
        self.perform(Pass(name, level, sinks, size.height, self.schedule[level].strip_rows, beside))
