"""What the engine asks of the ranks that share an image's rows. `shard` does it; alone there is nothing to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from torch import Tensor

from ..memory.spill import Parked

if TYPE_CHECKING:
    from .moments import Gathered
    from .plane import Plane
    from .source import PlaneSource

OwnTokens = Callable[[int, int], "tuple[Tensor, Tensor]"]
"""(top, bottom), rows of this rank -> their keys and values (B, n, C)."""
BLOCK_ELEMENTS = 2**20
"""Keys that one message holds at most, unless a single row has more."""


class RankStopped(RuntimeError):
    """Another rank has stopped; `out_of_memory`: because it had too little of it, and all may try again with less."""

    def __init__(self, message: str, out_of_memory: bool) -> None:
        super().__init__(message)
        self.out_of_memory = out_of_memory


class RankLost(Exception):
    """A rank is gone without a word; nothing more can be done together."""


class Tokens(NamedTuple):
    """Keys and values (B, n, C) of rows top..bottom of the whole plane."""

    top: int
    bottom: int
    keys: Tensor
    values: Tensor


class Ranks(Protocol):
    """All ranks make the same calls in the same order. Any call may raise because another rank has stopped."""

    def exchange(self, readers: Sequence[PlaneSource]) -> None:
        """Before a pass: give every plane the rows beyond its own that will be read."""
        ...

    def merge(self, moments: Sequence[Gathered]) -> None:
        """After a pass: make moments of own rows those of all rows."""
        ...

    def tokens(self, plane: Plane, own: OwnTokens, take: Callable[[Tokens], None]) -> None:
        """Give keys and values of own rows to the others, and hand theirs to `take`."""
        ...


class Alone:
    """One process has everything."""

    def exchange(self, readers: Sequence[PlaneSource]) -> None:
        """Nothing lies beyond."""

    def merge(self, moments: Sequence[Gathered]) -> None:
        """They are those of all rows."""

    def tokens(self, plane: Plane, own: OwnTokens, take: Callable[[Tokens], None]) -> None:
        """There are no others."""


ALONE = Alone()


class Beyond(NamedTuple):
    """Rows of other ranks right above and right below a plane's own, (B, C, n, W) each."""

    above: Tensor
    below: Tensor

    def rows(self, first: int, bottom: int, height: int) -> Tensor:
        """Rows first..bottom of the side that `first` is on; the plane itself has rows 0..height."""
        if first < 0:
            start = first + self.above.shape[2]
            return self.above[:, :, start : min(0, bottom) + self.above.shape[2]]
        return self.below[:, :, first - height : bottom - height]


def block_rows(plane: Plane) -> int:
    """Rows whose keys are sent in one message: the same on all ranks."""
    return max(1, BLOCK_ELEMENTS // (plane.images * plane.size.channels * plane.size.width))


def copy_rows(plane: Plane, top: int, bottom: int, target: Tensor) -> None:
    """Copy rows of a plane into `target` (B, C, bottom - top, W), wherever its strips wait."""
    while top < bottom:
        index = top // plane.strip_rows
        first = index * plane.strip_rows
        end = min(bottom, first + plane.strip_rows)
        strip = plane.get(index)
        if isinstance(strip, Parked):
            strip = strip.settled()
        rows = target[:, :, : end - top]
        rows.copy_(strip[:, :, top - first : end - first])
        target, top = target[:, :, end - top :], end
