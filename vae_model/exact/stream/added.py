"""The sum of two sources of rows."""

from __future__ import annotations

from torch import Tensor

from .fill import ACTIVATE
from .source import Cost, PlaneRows, Rows


class AddedRows(Rows):
    """The sum of two sources; what `main` returns is fresh, so the other is added into it."""

    whole = True

    def __init__(self, main: Rows, other: Rows, after: str | None = None) -> None:
        super().__init__(main.context, main.size, main.top, main.bottom)
        self.main, self.other, self.after = main, other, after

    def take(self, bottom: int) -> list[Tensor]:
        if bottom <= self.at:
            return []
        (result,) = self.main.take(bottom)  # a convolution returns one piece
        self.at = bottom
        row = 0
        for piece in self.other.take(bottom):
            result[:, :, row : row + piece.shape[2]] += piece
            row += piece.shape[2]
        return [ACTIVATE[self.after](result) if self.after else result]

    def cost(self, top: int, bottom: int) -> Cost:
        main, other = self.main.cost(top, bottom), self.other.cost(top, bottom)
        freed = self.other.standing(top, top) - self.other.standing(top, bottom)
        return Cost(max(main.peak + freed, main.held + other.peak), main.held)

    def standing(self, top: int, bottom: int) -> int:
        return self.main.standing(top, bottom) + self.other.standing(top, bottom)

    def first(self, top: int, bottom: int) -> tuple[int, int]:
        before, rest = self.main.first(top, bottom)
        unread, read = self.other.standing(top, top), self.other.standing(top, bottom)
        held = self.main.cost(top, bottom).held
        peak = max(before + unread, rest + held + read + self.other.cost(top, bottom).peak)
        return peak, rest + self.other.first(top, bottom)[1]

    def readers(self, bottom: int) -> list[tuple[PlaneRows, int]]:
        return self.main.readers(bottom) + self.other.readers(bottom)

    def scratch_bytes(self) -> int:
        return max(self.main.scratch_bytes(), self.other.scratch_bytes())

    def work(self) -> int:
        return self.main.work() + self.other.work()
