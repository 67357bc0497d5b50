"""One source of rows read by two readers, the second some rows behind the first."""

from __future__ import annotations

from torch import Tensor

from ..program import Extent
from .context import Context
from .source import Cost, PlaneRows, Recipe, Rows


class Shared:
    """Reads a source once; pieces are kept until the slower reader has passed them.

    `lag`: rows that the second reader is behind the first.
    """

    def __init__(self, context: Context, size: Extent, recipe: Recipe, lag: int) -> None:
        self.context, self.size, self.lag = context, size, lag
        self._recipe = recipe
        # Positions, not readers: two objects that hold each other would keep their strips until a garbage collection.
        self._at: list[int] = []
        self._top, self._bottom = 0, 0
        self._source: Rows | None = None
        self._pieces: list[tuple[int, Tensor]] = []

    def reader(self, top: int, bottom: int) -> Rows:
        """A reader of those rows. Both are made before the first row is taken; the first one made leads."""
        self._top = min(top, self._top) if self._at else top
        self._bottom = max(bottom, self._bottom)
        self._at.append(top)
        return _Reader(self, top, bottom, len(self._at) - 1)

    @property
    def source(self) -> Rows:
        """The source over the rows of both readers."""
        if self._source is None:
            self._source = self._recipe(self._top, self._bottom)
        return self._source

    def take(self, number: int, bottom: int) -> list[Tensor]:
        """Rows of one reader, from the pieces that are kept or from the source."""
        row = self.source.at
        if bottom > row:
            for piece in self.source.take(bottom):
                self._pieces.append((row, piece))
                row += piece.shape[2]
        found: list[Tensor] = []
        for start, piece in self._pieces:
            low, high = max(self._at[number], start), min(bottom, start + piece.shape[2])
            if low < high:
                found.append(piece[:, :, low - start : high - start])
        self._at[number] = bottom
        slowest = min(self._at)
        self._pieces = [
            self._rest(start, piece, slowest) for start, piece in self._pieces if start + piece.shape[2] > slowest
        ]
        return found

    def _rest(self, start: int, piece: Tensor, row: int) -> tuple[int, Tensor]:
        """What of a piece lies from `row` on: its own copy, unless a plane holds the piece anyway."""
        if start >= row or isinstance(self.source, PlaneRows):
            return start, piece
        return row, piece[:, :, row - start :].clone()

    def kept_bytes(self, top: int, bottom: int) -> int:
        """Bytes of the pieces kept while the leader takes top..bottom, without what a plane holds anyway."""
        if isinstance(self.source, PlaneRows):
            return self.source.strip_bytes(top - self.lag, bottom)
        before = min(max(0, top - self.source.top), max(1, self.lag))
        return (before + bottom - top) * self.source.row_bytes


class _Reader(Rows):
    """One of the two; the leader stands for the source's cost and work, the other finds everything ready."""

    def __init__(self, shared: Shared, top: int, bottom: int, number: int) -> None:
        super().__init__(shared.context, shared.size, top, bottom)
        self.shared, self.number = shared, number
        self.leads = number == 0

    def take(self, bottom: int) -> list[Tensor]:
        return self.shared.take(self.number, bottom)

    def cost(self, top: int, bottom: int) -> Cost:
        if not self.leads or bottom <= top:
            return Cost(0, 0)
        cost = self.shared.source.cost(top, bottom)
        return Cost(max(0, cost.peak - cost.held), 0)

    def standing(self, top: int, bottom: int) -> int:
        if not self.leads:
            return 0
        return self.shared.source.standing(top, bottom) + self.shared.kept_bytes(top, bottom)

    def first(self, top: int, bottom: int) -> tuple[int, int]:
        if not self.leads:  # what it has passed is let go; of a plane's strips only the last are sure to be
            whole = bottom >= self.bottom or not isinstance(self.shared.source, PlaneRows)
            return 0, -self.shared.kept_bytes(top, bottom) if whole else 0
        before, rest = self.shared.source.first(top, bottom)
        kept = rest + self.shared.kept_bytes(top, bottom)
        return max(before, kept), kept

    def readers(self, bottom: int) -> list[tuple[PlaneRows, int]]:
        return self.shared.source.readers(bottom) if self.leads else []

    def scratch_bytes(self) -> int:
        return self.shared.source.scratch_bytes() if self.leads else 0

    def work(self) -> int:
        return self.shared.source.work() if self.leads else 0
