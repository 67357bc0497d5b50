"""The sum of two sources of rows; where the second has fewer channels they are repeated, where more averaged."""

from __future__ import annotations

from torch import Tensor

from .fill import ACTIVATE
from .source import Cost, Source


def add_fitted(target: Tensor, x: Tensor) -> None:
    """Add x to `target`, (B, C, n, W) both, in place. Fewer channels are taken several times each, of more the mean of
    as many that follow each other."""
    channels, given = target.shape[1], x.shape[1]
    if given < channels:
        repeated = target.unflatten(1, (given, -1))  # (B, given, repeats, n, W)
        repeated += x.unsqueeze(2)
    else:
        target += x if given == channels else x.unflatten(1, (channels, -1)).mean(2)


class AddedSource(Source):
    """The sum of two sources; what `main` returns is fresh, so the other is added into it."""

    whole = True

    def __init__(self, main: Source, other: Source, after: str | None = None) -> None:
        super().__init__(main.context, main.size, main.top, main.bottom, main, other)
        self.main, self.other, self.after = main, other, after

    def take(self, bottom: int) -> list[Tensor]:
        if bottom <= self.at:
            return []
        (result,) = self.main.take(bottom)  # a convolution returns one piece
        self.at = bottom
        row = 0
        for piece in self.other.take(bottom):
            add_fitted(result[:, :, row : row + piece.shape[2]], piece)
            row += piece.shape[2]
        return [ACTIVATE[self.after](result) if self.after else result]

    def _cost(self, top: int, bottom: int) -> Cost:
        main, other = self.main.cost(top, bottom), self.other.cost(top, bottom)
        if self.other.size.channels > self.size.channels:  # the means before they are added
            other = other._replace(peak=max(other.peak, other.held + (bottom - top) * self.row_bytes))
        unread = self.other.cost(top, top).stands
        opening = None
        if top == self.top:
            before, rest = main.first
            opening = max(before + unread, rest + main.held + other.stands + other.peak), rest + other.first[1]
        peak = max(main.peak + unread - other.stands, main.held + other.peak)
        return Cost(peak, main.held, main.stands + other.stands, main.parked + other.parked, opening)
