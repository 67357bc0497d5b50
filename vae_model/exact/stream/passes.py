"""A pass: rows pulled strip by strip from sources to sinks. Its peak is told by the same objects that run it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from torch import Tensor

from .moments import Gathered
from .plane import Plane
from .source import PlaneSource, Source

Emit = Callable[[int, Tensor], None]
"""Takes (first row, rows) of the finished result; they come in order."""
Check = Callable[[], None]
"""Called before every strip; it may raise to stop the run."""


class Performable(Protocol):
    """A pass over rows, or what an op does in a way of its own. What it needs is told by the object that runs it."""

    @property
    def work(self) -> int:
        """Floating point operations."""
        ...

    @property
    def moved_bytes(self) -> int:
        """Bytes copied to host memory and back."""
        ...

    def peaks(self) -> Iterator[int]:
        """Device bytes at each of the moments of which one is the worst."""
        ...

    @property
    def host_bytes(self) -> int:
        """Host bytes of what waits there, at the worst moment."""
        ...

    def run(self, check: Check, report: Callable[[int], None]) -> None:
        """Do it. `report` gets the operations done with each strip."""
        ...


@dataclass
class Sink:
    """Where rows end: in a plane, in moments of what the plane stores, with the caller, or in moments alone."""

    rows: Source
    plane: Plane | None = None
    moments: Gathered | None = None
    emit: Emit | None = None

    def take(self, index: int, top: int, bottom: int) -> None:
        """Pull one strip."""
        pieces = self.rows.take(bottom)
        if self.plane is not None:
            strip = _as_strip(pieces, self)
            pieces = [strip]
            self.plane.put(index, strip)
            del strip
        while pieces:  # each piece is let go before the next one is used
            piece = pieces.pop(0)
            if self.moments is not None:
                self.moments.add(piece)
            if self.emit is not None:
                self.emit(top, piece)
            top += piece.shape[2]
            del piece

    def need_bytes(self, index: int, top: int, bottom: int, leaving: int) -> int:
        """Device bytes for strip `index`; another one that is `leaving` is gone once the new one is parked."""
        cost, size = self.rows.cost(top, bottom), (bottom - top) * self.rows.row_bytes
        peak, stays = (cost.stands + cost.peak, cost.stands) if index else cost.first
        storing, statistics = stays + cost.held, 0
        if self.plane is not None and index and not self.rows.whole:
            storing += size  # a copy
        itemsize = self.rows.context.dtype.itemsize
        if self.moments is not None:
            statistics = self.moments.add_bytes(size // itemsize, itemsize)
        return max(leaving + max(peak, storing), storing + statistics)


def _as_strip(pieces: list[Tensor], sink: Sink) -> Tensor:
    """One dense tensor that owns its memory."""
    first = pieces[0]
    if len(pieces) == 1 and first.untyped_storage().nbytes() == first.numel() * first.dtype.itemsize:
        return first
    size = sink.rows.size
    strip = sink.rows.context.strip(size, sum(piece.shape[2] for piece in pieces))
    row = 0
    for piece in pieces:
        strip[:, :, row : row + piece.shape[2]] = piece
        row += piece.shape[2]
    return strip


@dataclass
class Pass:
    """Strips of `strip_rows` rows over `height` rows; every sink is served for each strip, in order."""

    name: str
    level: int
    sinks: list[Sink]
    height: int
    strip_rows: int
    beside: tuple[Plane, ...] = ()
    """Planes that a later pass reads, whole all the while."""

    def run(self, check: Check, report: Callable[[int], None]) -> None:
        """Pull everything. `report` gets the operations done with each strip."""
        work, readers = self.work, self._readers
        context = self.sinks[0].rows.context
        context.ranks.exchange(readers)
        for index, top in enumerate(range(0, self.height, self.strip_rows)):
            check()
            bottom = min(self.height, top + self.strip_rows)
            for sink in self.sinks:
                sink.take(index, top, bottom)
            report(work * bottom // self.height - work * top // self.height)
        for reader in readers:
            reader.plane.beyond = None
        context.ranks.merge([sink.moments for sink in self.sinks if sink.moments is not None])
        context.free_scratch()
        if context.spill is not None:
            context.spill.settle()

    @property
    def work(self) -> int:
        """Floating point operations."""
        return sum(sink.rows.work for sink in self.sinks)

    @cached_property
    def _readers(self) -> list[PlaneSource]:
        return [reader for sink in self.sinks for reader in sink.rows.planes]

    @cached_property
    def _written(self) -> list[Plane]:
        return [sink.plane for sink in self.sinks if sink.plane is not None]

    @property
    def moved_bytes(self) -> int:
        """Bytes copied to host memory and back."""
        return self._moved_bytes

    @cached_property
    def _moved_bytes(self) -> int:
        return sum(plane.host_bytes() for plane in (*self._written, *(reader.plane for reader in self._readers)))

    @property
    def host_bytes(self) -> int:
        """Host bytes of spilled strips at the worst moment."""
        waiting = sum(plane.host_bytes() for plane in self.beside)
        return waiting + (max(map(self._parked, self._decisive)) if self.moved_bytes else 0)

    def peaks(self) -> Iterator[int]:
        """Those of the strips that tell all, the last one first, as most has been stored by then."""
        more = max(sink.rows.scratch_bytes for sink in self.sinks)
        more += sum(plane.device_bytes(0, plane.count) for plane in self.beside)
        for index in reversed(self._decisive):
            yield self._strip_peak(index) + more

    @cached_property
    def _decisive(self) -> list[int]:
        """Numbers of the strips that tell all: the first and last ones, and those around a source's strip being freed.

        Bytes rise from one freed strip to the next by the same amount, so its first, last but one and last tell all.
        """
        count = -(-self.height // self.strip_rows)
        indices = {0, 1, 2, *range(count - 5, count)}
        for plane in {id(reader.plane): reader.plane for reader in self._readers}.values():
            if plane.strip_rows * self.height <= self.strip_rows * plane.size.height:
                continue  # a strip or more is freed with every strip that is made
            for strip in (1, plane.count - 1, plane.count):
                row = strip * plane.strip_rows * self.height // plane.size.height
                indices |= set(range((row - 8) // self.strip_rows - 1, row // self.strip_rows + 2))
        return sorted(index for index in indices if 0 <= index < count)

    def _parked(self, index: int) -> int:
        """Host bytes of spilled strips once strip `index` is written and nothing that it was made from is let go."""
        top = index * self.strip_rows
        read = sum(sink.rows.cost(max(0, top - self.strip_rows), top).parked for sink in self.sinks)
        return read + sum(plane.host_bytes(0, index + 1) for plane in self._written)

    def _strip_peak(self, index: int) -> int:
        top = index * self.strip_rows
        bottom = min(self.height, top + self.strip_rows)
        worst = 0
        for number, sink in enumerate(self.sinks):
            standing = leaving = 0  # one strip at a time is on its way to host memory and still on the device, too
            for at, other in enumerate(self.sinks):
                if at > number:
                    standing += other.rows.cost(top, top).stands
                elif at < number:  # what the first strip leaves is less: its windows are not kept
                    cost = other.rows.cost(top, bottom)
                    standing += cost.stands if index else cost.first[1]
                if other.plane is not None:
                    done = index + (at < number)
                    standing += other.plane.most_device_bytes(0, done)
                    if done and other.plane.device_share < 1:
                        leaving = max(leaving, other.plane.strip_rows * other.plane.row_bytes)
            worst = max(worst, standing + sink.need_bytes(index, top, bottom, leaving))
        return worst
