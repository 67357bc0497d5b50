"""Rows whose 2x2 squares of latent cells were moved into channels, or back, with their normalisation if any.

Cell (y, x) of a square and channel c become channel 4 * c + 2 * y + x. The numbers of the normalisation are buffers, no
weights: nobody patches them, so they are read from their module.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..extent import Extent
from ..layer import Statistics
from .context import Context
from .source import Cost, MakeSource, Source


class _Shuffling(Source):
    """Base of both: statistics in float32 or better, and a source whose rows are twice or half as many."""

    def __init__(
        self, context: Context, statistics: Statistics | None, top: int, bottom: int, source: MakeSource, size: Extent
    ) -> None:
        self.source = source(*self._source_rows(top, bottom))
        super().__init__(context, size, top, bottom, self.source)
        self.wide = torch.promote_types(context.dtype, torch.float32)
        self._statistics = statistics
        self._numbers: tuple[Tensor, Tensor] | None = None

    def _source_rows(self, top: int, bottom: int) -> tuple[int, int]:
        raise NotImplementedError

    def _scale_shift(self) -> tuple[Tensor, Tensor] | None:
        """Standard deviation and mean (C, 1, 1), None where nothing is normalised."""
        if self._numbers is None and self._statistics is not None:
            bn: Any = self._statistics.module
            mean, variance = (
                stored.to(self.context.device, self.wide)[:, None, None] for stored in (bn.running_mean, bn.running_var)
            )
            self._numbers = torch.sqrt(variance + self._statistics.eps), mean
        return self._numbers

    def _cost(self, top: int, bottom: int) -> Cost:
        source, held = self.source.cost(*self._source_rows(top, bottom)), (bottom - top + 2) * self.row_bytes
        wide = 0 if self._statistics is None else held * self.wide.itemsize // self.context.dtype.itemsize
        peak = max(source.peak, source.held + 2 * wide + 2 * held)
        return Cost(peak, held, source.stands + self.row_bytes, source.parked)


class ShuffledSource(_Shuffling):
    """Packed and normalised rows (4C, w) to raw ones (C, 2w), twice as many."""

    _rest: Tensor | None = None
    """The second of two rows whose first was the last one taken."""

    def _source_rows(self, top: int, bottom: int) -> tuple[int, int]:
        return top // 2, -(-bottom // 2)

    def take(self, bottom: int) -> list[Tensor]:
        if bottom <= self.at:
            return []
        numbers = self._scale_shift()
        pieces = [] if self._rest is None else [self._rest]
        self._rest = None
        for piece in self.source.take(-(-bottom // 2)):
            if numbers is not None:
                std, mean = numbers
                piece = torch.addcmul(mean, piece.to(self.wide), std).to(self.context.dtype)
            pieces.append(functional.pixel_shuffle(piece, 2))
        if self.at == self.top and self.top % 2 and pieces:
            pieces[0] = pieces[0][:, :, 1:]
        if bottom % 2:
            pieces[-1], self._rest = pieces[-1][:, :, :-1], pieces[-1][:, :, -1:].clone()
        self.at = bottom
        return [piece for piece in pieces if piece.shape[2]]


class UnshuffledSource(_Shuffling):
    """Raw rows to packed and normalised ones, half as many; channels beyond the packed ones are dropped."""

    whole = True

    def _source_rows(self, top: int, bottom: int) -> tuple[int, int]:
        return 2 * top, 2 * bottom

    def take(self, bottom: int) -> list[Tensor]:
        if bottom <= self.at:
            return []
        numbers = self._scale_shift()
        raw = torch.cat(self.source.take(2 * bottom), dim=2)[:, : self.size.channels // 4, :, : 2 * self.size.width]
        packed = functional.pixel_unshuffle(raw, 2)
        self.at = bottom
        if numbers is None:
            return [packed]
        std, mean = numbers
        return [((packed.to(self.wide) - mean) / std).to(self.context.dtype)]
