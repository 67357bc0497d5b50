"""Which rows of every plane one of several ranks computes: pure arithmetic, for running and for planning.

Rows are dealt out at the lowest resolution and doubled exactly with every upsample, so that a rank's rows of a plane
always lie under its rows of the next one. Inside a rank rows are counted from its own first one: row -1 is the last row
of the rank above, and the image itself may begin at a negative row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ...errors import InputError


class Place(NamedTuple):
    """Where a rank's rows lie in the whole plane: first row, and rows of the whole plane."""

    offset: int
    whole: int


class Piece(NamedTuple):
    """Rows that one rank needs of another: `row` and `start` are counted by the one that needs and the one that has."""

    needs: int
    has: int
    row: int
    start: int
    rows: int


@dataclass(frozen=True)
class Share:
    """The rows of rank `rank` among `count` ranks; `rows`: of the whole image at the lowest resolution."""

    rows: int = 1
    rank: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if self.rows < self.count:
            raise InputError(
                f"shard: expected at least one row of latent cells for each of {self.count} ranks, got {self.rows}: "
                "use fewer ranks"
            )

    def bounds(self, rank: int) -> tuple[int, int]:
        """First and last but one row of a rank at the lowest resolution."""
        return self.rows * rank // self.count, self.rows * (rank + 1) // self.count

    @property
    def own_rows(self) -> int:
        """Rows of this rank at the lowest resolution."""
        top, bottom = self.bounds(self.rank)
        return bottom - top

    def local(self, height: int) -> int:
        """This rank's rows of a plane of so many rows."""
        return height if self.count == 1 else height // self.rows * self.own_rows

    def place(self, height: int) -> Place:
        """Where this rank's `height` rows of a plane lie in it."""
        if self.count == 1:
            return Place(0, height)
        scale = height // self.own_rows
        return Place(self.bounds(self.rank)[0] * scale, self.rows * scale)

    def pieces(self, scale: int, needs: list[tuple[int, int]]) -> list[Piece]:
        """What must be exchanged of one plane, in an order that all ranks agree on.

        Args:    scale: rows of the plane for a row of the lowest resolution.
                 needs: by rank, rows needed above its first and below its last one; they go round at the image's ends.
        """
        found: list[Piece] = []
        for rank, (above, below) in enumerate(needs):
            top, bottom = (row * scale for row in self.bounds(rank))
            for first, end in ((top - above, top), (bottom, bottom + below)):
                while first < end:
                    row = first % (self.rows * scale)
                    owner = ((row // scale + 1) * self.count - 1) // self.rows
                    start, stop = (row_ * scale for row_ in self.bounds(owner))
                    rows = min(end - first, stop - row)
                    found.append(Piece(rank, owner, first - top, row - start, rows))
                    first += rows
        return found


WHOLE = Share()
"""The only rank there is."""
