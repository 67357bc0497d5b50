"""Rows normalised by stored statistics, or back, piece by piece.

The numbers are buffers, no weights: nobody patches them, so they are read from their module.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..layer import Statistics
from .context import Context
from .source import Cost, Source


class StandardisedSource(Source):
    """In float32 or better, rounded once."""

    def __init__(self, context: Context, statistics: Statistics, back: bool, source: Source) -> None:
        super().__init__(context, source.size, source.top, source.bottom, source)
        self.statistics, self.back, self.source = statistics, back, source
        self.wide = torch.promote_types(context.dtype, torch.float32)
        self._numbers: tuple[Tensor, Tensor] | None = None

    def _scale_shift(self) -> tuple[Tensor, Tensor]:
        """Standard deviation and mean, (C, 1, 1)."""
        if self._numbers is None:
            bn: Any = self.statistics.module
            mean, variance = (
                stored.to(self.context.device, self.wide)[:, None, None] for stored in (bn.running_mean, bn.running_var)
            )
            self._numbers = torch.sqrt(variance + self.statistics.eps), mean
        return self._numbers

    def take(self, bottom: int) -> list[Tensor]:
        std, mean = self._scale_shift()
        pieces = self.source.take(bottom)
        self.at = bottom
        for index, piece in enumerate(pieces):
            wide = piece.to(self.wide)
            made = torch.addcmul(mean, wide, std) if self.back else (wide - mean) / std
            pieces[index] = made.to(self.context.dtype)
            del piece, wide, made
        return pieces

    def _cost(self, top: int, bottom: int) -> Cost:
        source, held = self.source.cost(top, bottom), (bottom - top) * self.row_bytes
        wide = held * self.wide.itemsize // self.context.dtype.itemsize
        before, rest = source.first
        making = source.held + held + 2 * wide
        return Cost(max(source.peak, making), held, source.stands, source.parked, (max(before, rest + making), rest))
