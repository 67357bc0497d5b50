"""A plane: one activation of the whole image as a list of row strips, each freed as soon as nobody needs its rows."""

from __future__ import annotations

from torch import Tensor

from ..extent import Extent
from ..memory.spill import Parked
from .context import Context
from .ranks import Beyond


class Plane:
    """Strips of `strip_rows` rows, the last one shorter; a share of them lives on the device, the others are spilled.

    Which strips are spilled is decided by their number alone, evenly spread, so that copies and work can overlap.
    """

    def __init__(self, context: Context, size: Extent, strip_rows: int, device_share: float = 1.0) -> None:
        self.context, self.size = context, size
        self.strip_rows, self.device_share = strip_rows, device_share
        self.row_bytes = context.row_bytes(size)
        self.images = context.batch * size.frames
        """Pictures or frames."""
        self.count = -(-size.height // strip_rows)
        """How many strips the plane has."""
        self._strips: dict[int, Tensor | Parked] = {}
        self.beyond: Beyond | None = None
        """Rows of other ranks that the pass under way reads."""

    def on_device(self, index: int) -> bool:
        """Whether strip `index` stays on the device."""
        return self._device_strips(index + 1) > self._device_strips(index)

    def _device_strips(self, count: int) -> int:
        """How many of the first `count` strips stay on the device."""
        return int(count * self.device_share + 1e-9)

    def device_bytes(self, first: int, last: int) -> int:
        """Device bytes of the strips first..last - 1."""
        if self.device_share == 0 or first >= last:
            return 0
        if self.device_share == 1:
            return (min(last * self.strip_rows, self.size.height) - first * self.strip_rows) * self.row_bytes
        strips = self._device_strips(last) - self._device_strips(first)
        rows = strips * self.strip_rows
        if first < last == self.count and self.on_device(last - 1):
            rows -= self.count * self.strip_rows - self.size.height
        return rows * self.row_bytes

    def most_device_bytes(self, first: int, last: int) -> int:
        """At least `device_bytes` of any strips that are as many, first..last - 1: even in the number of strips.

        Which strips are spilled shows as steps; sizes that are taken at a few strips only must not fall between them.
        """
        if self.device_share in (0, 1) or last - first == self.count:
            return self.device_bytes(first, last)
        strips = (last - first) * self.device_share + 1
        return int(min(last - first, strips) * self.strip_rows) * self.row_bytes

    def host_bytes(self, first: int = 0, last: int | None = None) -> int:
        """Host bytes of the strips first..last - 1, of all strips without them."""
        if self.device_share == 1:
            return 0
        last = self.count if last is None else last
        rows = max(0, min(last * self.strip_rows, self.size.height) - first * self.strip_rows)
        return rows * self.row_bytes - self.device_bytes(first, last)

    def put(self, index: int, strip: Tensor) -> None:
        """Store strip `index`; the plane owns the tensor from here on."""
        if self.on_device(index):
            self._strips[index] = strip
        else:
            assert self.context.spill is not None  # a schedule that spills comes with a store
            self._strips[index] = self.context.spill.park(strip)

    def get(self, index: int) -> Tensor | Parked:
        """The stored strip; RuntimeError if it was dropped, which would be a mistake of the schedule."""
        strip = self._strips.get(index)
        if strip is None:
            raise RuntimeError(f"plane: expected strip {index} to be stored, it is not")
        return strip

    def drop(self, index: int) -> None:
        """Free strip `index`."""
        strip = self._strips.pop(index)
        if isinstance(strip, Parked):
            assert self.context.spill is not None
            self.context.spill.forget(strip)
