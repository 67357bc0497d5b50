"""Convolutions by PyTorch's own, on any device and in any dtype: what there always is."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from .cuda.strips import copy_pixels
from .fold import fold_bytes, fold_upsample
from .method import Memory, Wanted

Kernels = list[list[Tensor]]
"""[row parity][column parity], each (out, in, 2, 2)."""


@dataclass(frozen=True)
class PlainConvolution:
    """Of any kernel and stride."""

    wanted: Wanted

    scratch_bytes = product_bytes = fold_bytes = 0

    @property
    def columns(self) -> tuple[int, int]:
        """None where the convolution itself adds equal zeros."""
        before, after = self.wanted.pads
        return (0, 0) if self.wanted.zeros and before == after else (before, after)

    @property
    def weight_bytes(self) -> int:
        """Of a copy in the run's memory order, at most."""
        wanted = self.wanted
        copied = wanted.kernel > 1 and wanted.copies
        return wanted.channels[0] * wanted.channels[1] * wanted.kernel**2 * wanted.dtype.itemsize if copied else 0

    def rows_below(self, rows: int) -> int:
        """None."""
        return 0

    def making_bytes(self, rows: int) -> int:
        """None."""
        return 0

    def arrange(self, memory: Memory, weight: Tensor, odd: bool) -> Tensor:
        """In the run's memory order."""
        return weight.contiguous(memory_format=memory.memory_format)

    def run(
        self, memory: Memory, window: Tensor, weight: Tensor, bias: Tensor | None, top: int, rows: int, odd: bool
    ) -> Tensor:
        """(B, out, rows, W)."""
        pad = 0 if sum(self.columns) else self.wanted.pads[0]
        return functional.conv2d(window, weight, bias, stride=self.wanted.stride, padding=(0, pad))


@dataclass(frozen=True)
class PlainUpsample(PlainConvolution):
    """Nearest x2 and a 3x3 convolution: four 2x2 convolutions of the small plane."""

    @property
    def fold_bytes(self) -> int:
        """Bytes of the sums of which the kernels are made."""
        return fold_bytes(*self.wanted.channels, self.wanted.dtype.itemsize)

    @property
    def weight_bytes(self) -> int:
        """Of all four kernels."""
        return self.wanted.channels[0] * self.wanted.channels[1] * 16 * self.wanted.dtype.itemsize

    def making_bytes(self, rows: int) -> int:
        """Of one parity's results."""
        wanted = self.wanted
        return -(-rows // 2) * wanted.batch * wanted.channels[1] * (wanted.width + 1) * wanted.dtype.itemsize

    def arrange(self, memory: Memory, weight: Tensor, odd: bool) -> Kernels:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The four kernels."""
        order = memory.memory_format
        return [[fold_upsample(weight, r, c).contiguous(memory_format=order) for c in (0, 1)] for r in (0, 1)]

    def run(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, memory: Memory, window: Tensor, weight: Kernels, bias: Tensor | None, top: int, rows: int, odd: bool
    ) -> Tensor:
        """(B, out, rows, 2 * W), from row `top` on; the window begins with source row (top - 1) // 2."""
        pad, bottom, first = 0 if sum(self.columns) else 1, top + rows, (top - 1) // 2
        width = window.shape[3] - 2 + 2 * pad
        out = memory.empty(weight[0][0].shape[0], rows, 2 * width)
        for r in (0, 1):
            start = top + (r - top) % 2  # the first row of this parity
            count = len(range(start, bottom, 2))
            if count == 0:
                continue
            source = start // 2 - 1 + r - first
            part = window[:, :, source : source + count + 1]
            for c in (0, 1):
                # All W + 1 columns are computed: cheaper than cutting one off the input, which would copy it.
                result = functional.conv2d(part, weight[r][c], bias, padding=(0, pad))
                copy_pixels(out[:, :, start - top :: 2, c::2], result[..., c : c + width])
                del result
        return out
