"""Rows of a convolution, strip by strip."""

from __future__ import annotations

from .window import Windowed


class ConvolvedSource(Windowed):
    """A convolution of any stride."""

    def _first(self, row: int) -> int:
        return row * self.conv.stride - self.conv.pad_before

    def _end(self, bottom: int) -> int:
        return (bottom - 1) * self.conv.stride - self.conv.pad_before + self.conv.kernel
