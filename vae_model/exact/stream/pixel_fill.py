"""The norm of single pixels in front of a convolution: it needs nothing of other pixels, so no pass of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.pixel_norm import normalise_into, part_bytes
from ..layer import PixelNorm
from .context import Context, Fill


@dataclass(frozen=True)
class PixelFill:
    """Makes what writes norm and activation into a window; asks for the norm's weight only then."""

    context: Context
    norm: PixelNorm
    activation: str | None
    """None or "silu"."""

    def __call__(self) -> Fill:
        gamma, silu = self.context.pixel_weight(self.norm), self.activation == "silu"

        def fill(target: Tensor, x: Tensor) -> None:
            normalise_into(target, x, gamma, silu=silu)

        return fill

    def work_bytes(self, source_bytes: int) -> int:
        """Bytes beside the source's rows and the window, while so many bytes of rows are written."""
        dtype: torch.dtype = self.context.dtype
        elements = source_bytes // dtype.itemsize
        return part_bytes(elements, self.norm.channels, dtype, self.context.device.type)
