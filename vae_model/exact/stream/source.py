"""Sources of rows, read in order from `top` to `bottom`: planes, inputs, and what is computed from other sources.

A chain of sources computes layer behind layer without storing anything between them but the few rows that the next
strip needs again. Every source also tells what reading costs, from sizes alone: the plan and the run are one code.
Rows outside 0..height exist for circular padding only: row -1 is row height - 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..extent import Extent
from ..memory.spill import Parked
from .context import Context
from .plane import Plane

MakeSource = Callable[[int, int], "Source"]
"""(top, bottom) -> a new source of those rows."""


ReadInput = Callable[[int, int], Tensor]
"""(top, bottom) -> those rows of the input (B, C, n, W), on any device and in any float dtype."""


class Cost(NamedTuple):
    """Bytes while rows top..bottom of a source are taken, everything above them being taken already."""

    peak: int
    """On the device at most, beside what stands."""
    held: int
    """By the pieces that are returned."""
    stands: int
    """On the device by this source and those before it, once the rows are taken."""
    parked: int = 0
    """In host memory by strips of the planes read, then."""
    opening: tuple[int, int] | None = None
    """For the first rows of all, on the device: at most, and what stays beside these. No window stands yet that a later
    layer will need; later strips find all of them in place. None: `stands` and `peak` tell it."""

    @property
    def first(self) -> tuple[int, int]:
        """`opening` in any case."""
        return self.opening or (self.stands + self.peak, self.stands)


class Source:
    """Base of all sources. `size` is the size of the whole activation, top and bottom the rows that will be read."""

    whole = False
    """Whether rows always come as one fresh tensor, so that storing them takes no copy."""
    fresh = False
    """Whether nobody else holds the tensors that come, though they may be several."""

    def __init__(self, context: Context, size: Extent, top: int, bottom: int, *sources: Source) -> None:
        """`sources`: what it reads from."""
        self.context, self.size = context, size
        self.top = self.at = top
        self.bottom = bottom
        self.row_bytes = context.row_bytes(size)
        self._sources = sources
        self.scratch_bytes = self.work = 0
        """Device bytes that any of the sources uses within single calls, a pass holds the most that one asks for; and
        floating point operations of the whole range."""
        for source in sources:
            self.work += source.work
            self.scratch_bytes = max(self.scratch_bytes, source.scratch_bytes)
        self._costs: dict[tuple[int, int], Cost] = {}

    @property
    def planes(self) -> list[PlaneSource]:
        """The planes that are read in the end."""
        return [plane for source in self._sources for plane in source.planes]

    def take(self, bottom: int) -> list[Tensor]:
        """The rows from the last call's bottom (at first `top`) to `bottom`, as pieces (B, C, n, W) in order."""
        raise NotImplementedError

    def cost(self, top: int, bottom: int) -> Cost:
        """The cost of taking rows top..bottom once everything above was taken."""
        cost = self._costs.get((top, bottom))
        if cost is None:
            cost = self._costs[top, bottom] = self._cost(top, bottom)
        return cost

    def _cost(self, top: int, bottom: int) -> Cost:
        raise NotImplementedError


class InputSource(Source):
    """Rows of the input image or latent, brought to the device and into the run's dtype strip by strip."""

    def __init__(self, context: Context, size: Extent, top: int, bottom: int, source: ReadInput | None) -> None:
        super().__init__(context, size, top, bottom)
        self.source = source

    def take(self, bottom: int) -> list[Tensor]:
        assert self.source is not None
        pieces: list[Tensor] = []
        offset, height = self.context.share.place(self.size.height)
        while self.at < bottom:
            start = (offset + self.at) % height
            end = min(height, start + bottom - self.at)
            piece = self.context.strip(self.size, end - start)
            pieces.append(piece.copy_(self.source(start, end)))
            self.at += end - start
        return pieces

    def _cost(self, top: int, bottom: int) -> Cost:
        size = (bottom - top) * self.row_bytes
        return Cost(2 * size, size, 0)  # what the caller makes of the input's rows may lie on the same device


class PlaneSource(Source):
    """Rows of a stored plane. With `consume` every strip is dropped once its last row was taken."""

    def __init__(self, plane: Plane, top: int, bottom: int, *, consume: bool) -> None:
        super().__init__(plane.context, plane.size, top, bottom)
        self.plane, self.consume = plane, consume
        self._fetched: dict[int, tuple[Tensor, object]] = {}
        self._first_rows: Tensor | None = None
        self.reach = max(0, -top), max(0, bottom - self.size.height)
        """Rows needed above and below the plane's own; where ranks share the rows others have them."""
        self._shared = plane.context.share.count > 1
        self._states: dict[tuple[int, bool], tuple[int, int]] = {}

    def take(self, bottom: int) -> list[Tensor]:
        again = min(self.bottom - self.size.height, self.size.height)
        if self.at == self.top and again > 0 and self.consume and not self._shared:
            strips = range(-(-again // self.plane.strip_rows))
            self._first_rows = torch.cat([self._strip(index) for index in strips], dim=2)[:, :, :again].clone()
        pieces: list[Tensor] = []
        while self.at < bottom:
            pieces.append(self._piece(bottom))
            self.at += pieces[-1].shape[2]
        return pieces

    @property
    def planes(self) -> list[PlaneSource]:
        return [self]  # no attribute: a source that held itself would keep its strips until Python looks for circles

    def _piece(self, bottom: int) -> Tensor:
        """From the current row to the end of its strip, or to `bottom`."""
        height, strip_rows = self.size.height, self.plane.strip_rows
        if self.plane.beyond is not None and not 0 <= self.at < height:
            return self.plane.beyond.rows(self.at, bottom, height)
        row = self.at % height
        if self.at >= height and self._first_rows is not None:
            return self._first_rows[:, :, row : row + bottom - self.at]
        index = row // strip_rows
        strip = self._strip(index)
        piece = strip[:, :, row - index * strip_rows :][:, :, : bottom - self.at]
        if row + piece.shape[2] == min(height, (index + 1) * strip_rows) and self.at >= 0:
            self._fetched.pop(index, None)
            if self.consume:
                self.plane.drop(index)
            if index + 1 < self.plane.count and bottom > self.at + piece.shape[2]:
                self._prefetch(index + 1)
        return piece

    def _strip(self, index: int) -> Tensor:
        """The strip on the device; the one behind it is already on its way."""
        stored = self.plane.get(index)
        if not isinstance(stored, Parked):
            if index + 1 < self.plane.count:
                self._prefetch(index + 1)
            return stored
        self._prefetch(index)
        if index + 1 < self.plane.count:
            self._prefetch(index + 1)
        assert self.context.spill is not None
        return self.context.spill.arrived(*self._fetched[index])

    def _prefetch(self, index: int) -> None:
        stored = None if self.plane.on_device(index) else self.plane.get(index)
        if isinstance(stored, Parked) and index not in self._fetched:
            assert self.context.spill is not None
            self._fetched[index] = self.context.spill.fetch(stored)

    def _passed(self, row: int) -> int:
        """Strips whose last row lies above `row`."""
        if row <= 0:
            return 0
        return self.plane.count if row >= self.size.height else row // self.plane.strip_rows

    def strip_bytes(self, top: int, bottom: int) -> int:
        """Device bytes that the strips hold that are passed on the way from row `top` to `bottom`."""
        first, last = self._passed(top), self._passed(bottom)
        if self.plane.device_share >= 1:
            return self._rows_in(first, last) * self.row_bytes if self.consume else 0
        # Strips of another height than the reader's (but for its halo): as many as are ever passed at once.
        passed = max(last - first, -(-(bottom - top - 2) // self.plane.strip_rows)) if bottom > top else 0
        return self._rows_in(0, passed if self.consume else self._spilled(passed)) * self.row_bytes

    def _spilled(self, strips: int) -> int:
        """How many of so many strips in a row are spilled at most, wherever they are."""
        return math.ceil(strips * (1 - self.plane.device_share) - 1e-9)

    def _rows_in(self, first: int, last: int) -> int:
        """Rows of the strips first..last - 1."""
        return max(0, min(last * self.plane.strip_rows, self.size.height) - first * self.plane.strip_rows)

    def _cost(self, top: int, bottom: int) -> Cost:
        if self.plane.device_share == 1 and not self._shared:
            if not self.consume:
                return Cost(0, 0, self.size.height * self.row_bytes)
            first, last = self._passed(top), self._passed(bottom)
            freed = self._rows_in(first, last) * self.row_bytes
            return Cost(freed, freed, self._rows_in(last, self.plane.count) * self.row_bytes)
        held, behind = self.strip_bytes(top, bottom), (self._passed(bottom), bottom % self.plane.strip_rows != 0)
        state = self._states.get(behind)
        if state is None:
            state = self._states[behind] = self._state(*behind)
        return Cost(held, held, *state)

    def _state(self, last: int, begun: bool) -> tuple[int, int]:
        """Device and host bytes of what is stored behind so many strips, and whether the next one is begun.

        On the device there are of a spilled plane also the strip begun and the one behind it.
        """
        first = last if self.consume else 0
        stored = self.plane.most_device_bytes(first, self.plane.count)
        beyond = 2 * sum(self.reach) if self._shared else 0  # as they came, and on the wire
        if self.plane.device_share == 1:
            return stored + beyond * self.row_bytes, 0
        ahead = self._rows_in(last, last + self._spilled(min(1 + begun, self.plane.count - last)))
        return stored + (ahead + beyond) * self.row_bytes, self.plane.host_bytes(first, self.plane.count)
