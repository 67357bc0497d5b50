"""Rows whose frames and channels are taken as one another: nothing is computed, and no row beyond is looked at."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ..extent import Extent
from .context import Context
from .source import Cost, Source


@dataclass(frozen=True)
class Reframing:
    """So many frames, their channels behind each other, become so many others. The last one is repeated where there
    are too few, and of the result the first ones may be left out.
    """

    join: int = 1
    """Frames that become one ..."""
    split: int = 1
    """... of whose channels each part is a frame."""
    whole: int = 1
    """Frames of the source are a multiple of it; the last one is repeated until they are."""
    drop: int = 0

    def frames(self, frames: int) -> int:
        """Of the result."""
        return -(-frames // self.whole) * self.whole // self.join * self.split - self.drop

    def channels(self, channels: int) -> int:
        """Of the result."""
        return channels * self.join // self.split

    @property
    def continued(self) -> Reframing | None:
        """Of frames that others came before."""
        return None if self.join > 1 or self.whole > 1 else replace(self, drop=0)

    def write(self, out: Tensor, x: Tensor) -> None:
        """x (frames, C, n, W) into out (of the result, c, n, W)."""
        channels = out.shape[1] // self.join
        for number in range(len(out)):
            frame, part = divmod(number + self.drop, self.split)
            for place in range(self.join):
                source = x[min(frame * self.join + place, len(x) - 1)]
                target = out[number, place * channels : (place + 1) * channels]
                target.copy_(source[part * channels : (part + 1) * channels])


class ReframedSource(Source):
    """The frames and channels that a reframing makes of each row."""

    whole = True

    def __init__(self, context: Context, how: Reframing, source: Source, size: Extent) -> None:
        """`size`: of the result."""
        super().__init__(context, size, source.top, source.bottom, source)
        self.how, self.source = how, source

    def take(self, bottom: int) -> list[Tensor]:
        if bottom <= self.at:
            return []
        pieces = self.source.take(bottom)
        out = self.context.strip(self.size, bottom - self.at)
        row, self.at = 0, bottom
        while pieces:
            piece = pieces.pop(0)
            self.how.write(out[:, :, row : row + piece.shape[2]], piece)
            row += piece.shape[2]
            del piece
        return [out]

    def _cost(self, top: int, bottom: int) -> Cost:
        source, held = self.source.cost(top, bottom), (bottom - top) * self.row_bytes
        making = source.held + held
        if top > self.top:
            return Cost(max(source.peak, making), held, source.stands, source.parked)
        before, rest = source.first
        return Cost(max(source.peak, making), held, source.stands, source.parked, (max(before, rest + making), rest))
