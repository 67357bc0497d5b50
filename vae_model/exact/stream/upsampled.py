"""Rows of nearest x2 and then a 3x3 convolution, computed on the small plane without a large one in between."""

from __future__ import annotations

from ..extent import Extent
from .window import Windowed

_UPSAMPLED_BORDER = {"zeros": "zeros", "circular": "circular", "replicate": "replicate", "reflect": "replicate"}
"""Borders of the upsampled plane as borders of its source: a reflected row -1 is row 1, that is source row 0."""


class UpsampledSource(Windowed):
    """Nearest x2 and a 3x3 convolution: 4/9 of the work."""

    kind = "upsample"

    def _size(self, source: Extent) -> Extent:
        return Extent(self.conv.out_channels, 2 * source.height, 2 * source.width, source.frames)

    def _flops(self) -> int:
        return super()._flops() * 4 // 9

    def _mode(self) -> str:
        return _UPSAMPLED_BORDER[self.conv.mode]

    def _is_odd(self, top: int, bottom: int) -> bool:
        return top % 2 == 1 or (bottom < self.bottom and bottom % 2 == 1)  # so will the next strips begin

    def _first(self, row: int) -> int:
        return (row - 1) // 2

    def _end(self, bottom: int) -> int:
        return bottom // 2 + 1
