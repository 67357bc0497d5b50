"""One source of rows read by two readers, the second some rows behind the first."""

from __future__ import annotations

from torch import Tensor

from ..extent import Extent
from .context import Context
from .source import Cost, MakeSource, PlaneSource, Source


class Shared:
    """Reads a source once; pieces are kept until the slower reader has passed them.

    `lag`: rows that the second reader is behind the first.
    """

    def __init__(self, context: Context, size: Extent, recipe: MakeSource, lag: int) -> None:
        self.context, self.size, self.lag = context, size, lag
        self._recipe = recipe
        # Positions, not readers: two objects that hold each other would keep their strips until a garbage collection.
        self._at: list[int] = []
        self.source: Source
        self._pieces: list[tuple[int, Tensor]] = []

    def reader(self, top: int, bottom: int) -> Source:
        """A reader of those rows. Both are made before the first row is taken; the first one made leads.

        The other one reads no rows that the leader does not.
        """
        leads = not self._at
        if leads:
            self.source = self._recipe(top, bottom)
        assert self.source.top <= top
        assert bottom <= self.source.bottom
        self._at.append(top)
        return _Reader(self, top, bottom, len(self._at) - 1)

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
        if start >= row or isinstance(self.source, PlaneSource):
            return start, piece
        return row, piece[:, :, row - start :].clone()

    def kept_bytes(self, top: int, bottom: int) -> int:
        """Bytes of the pieces kept while the leader takes top..bottom, without what a plane holds anyway."""
        if isinstance(self.source, PlaneSource):
            return self.source.strip_bytes(top - self.lag, bottom)
        before = min(max(0, top - self.source.top), max(1, self.lag))
        return (before + bottom - top) * self.source.row_bytes


class _Reader(Source):
    """One of the two; the leader stands for the source's cost and work, the other finds everything ready."""

    def __init__(self, shared: Shared, top: int, bottom: int, number: int) -> None:
        super().__init__(shared.context, shared.size, top, bottom, *([] if number else [shared.source]))
        self.shared, self.number = shared, number

    def take(self, bottom: int) -> list[Tensor]:
        self.at = max(self.at, bottom)
        return self.shared.take(self.number, bottom)

    def _cost(self, top: int, bottom: int) -> Cost:
        kept = self.shared.kept_bytes(top, bottom)
        if self.number:  # what it has passed is let go; of a plane's strips only the last are sure to be
            stored = isinstance(self.shared.source, PlaneSource)
            if stored or self.size.frames == 1:
                return Cost(0, 0, 0, opening=(0, -kept if bottom >= self.bottom or not stored else 0))
            passed = (bottom - top) * self.row_bytes  # of all frames: too much to be counted until the next strip
            return Cost(passed, passed, -passed, opening=(0, -kept))
        source = self.shared.source.cost(top, bottom)
        before, rest = source.first
        peak = max(0, source.peak - source.held) if bottom > top else 0
        return Cost(peak, 0, source.stands + kept, source.parked, (max(before, rest + kept), rest + kept))
