"""Convolutions by PyTorch's own, on any device and in any dtype: what there always is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .cuda.strips import copy_pixels
from .method import Memory, Method, Wanted

_FRAMES = 4
"""Whose results of one tap are there at once."""
_HALVES = (((0,), (1, 2)), ((0, 1), (2,)))
"""By parity of the result's row (or column): which of the three taps fall on its first and on its second source row."""


def fold_upsample(weight: Tensor, row: int, column: int) -> Tensor:
    """The 2x2 kernel that makes the results of one parity of row and column.

    Nearest x2 followed by the 3x3 convolution `weight` (out, in, 3, 3) equals four such kernels on the small plane, one
    for each parity: (out, in, 2, 2). Summed in float32 or better, then rounded to the dtype of `weight` once.
    """
    w = weight if weight.dtype == torch.float64 else weight.float()
    w = torch.stack([w[:, :, taps].sum(dim=2) for taps in _HALVES[row]], dim=2)
    return torch.stack([w[..., taps].sum(dim=3) for taps in _HALVES[column]], dim=3).to(weight.dtype)


FOLD_BYTES = 2**25
"""What summing the kernels of an upsample takes at most beside the weights: wider ones are made part by part."""


def _fold_channels(wanted: Wanted) -> int:
    """Output channels whose kernels are made at a time."""
    each = wanted.channels[0] * max(4, wanted.dtype.itemsize) * 19  # bytes while one kernel is made
    return min(wanted.channels[1], max(1, FOLD_BYTES // each))


def _folded(weight: Tensor, row: int, column: int, order: torch.memory_format, channels: int) -> Tensor:
    """`fold_upsample` of so many output channels at a time, in that memory order."""
    if channels >= len(weight):
        return fold_upsample(weight, row, column).contiguous(memory_format=order)
    shape = (*weight.shape[:2], 2, 2)
    out = torch.empty(shape, dtype=weight.dtype, device=weight.device, memory_format=order)
    for first in range(0, len(weight), channels):
        out[first : first + channels] = fold_upsample(weight[first : first + channels], row, column)
    return out


def plain_convolution(wanted: Wanted) -> Method:
    """Of any kernel and stride; its weights are copied into the run's memory order."""
    weights = wanted.channels[0] * wanted.channels[1] // wanted.groups * wanted.kernel**2 * wanted.taps
    weights *= wanted.dtype.itemsize
    if wanted.taps > 1:
        before = wanted.taps - 1 if wanted.dtype.itemsize <= 2 else 0
        return CausalConvolution(_columns(wanted), weights, frames_before=before, wanted=wanted)
    return PlainConvolution(_columns(wanted), weights if wanted.kernel > 1 and wanted.copies else 0, wanted=wanted)


def plain_upsample(wanted: Wanted) -> Method:
    """Nearest x2 and a 3x3 convolution: four 2x2 convolutions of the small plane."""
    weights, itemsize = wanted.channels[0] * wanted.channels[1], wanted.dtype.itemsize
    at_once = _fold_channels(wanted)
    rounded = 4 * itemsize if at_once < wanted.channels[1] else 0  # a part, before it is among the others
    sums = wanted.channels[0] * at_once * (max(4, itemsize) * 19 + rounded)
    return PlainUpsample(_columns(wanted), weights * 16 * itemsize, sums, wanted=wanted)


def _columns(wanted: Wanted) -> tuple[int, int]:
    """None where the convolution itself adds equal zeros."""
    before, after = wanted.pads
    return (0, 0) if wanted.zeros and before == after else (before, after)


@dataclass(frozen=True, kw_only=True)
class PlainConvolution(Method):
    """See `plain_convolution`."""

    one_arrangement = True
    wanted: Wanted

    def arrange(self, memory: Memory, weight: Tensor, odd: bool) -> Any:
        return weight.contiguous(memory_format=memory.memory_format)

    def run(
        self, memory: Memory, window: Tensor, weight: Any, bias: Tensor | None, top: int, rows: int, odd: bool
    ) -> Tensor:
        pad = 0 if sum(self.columns) else self.wanted.pads[0]
        wanted = self.wanted
        return functional.conv2d(window, weight, bias, wanted.stride, (0, pad), groups=wanted.groups)


@dataclass(frozen=True, kw_only=True)
class CausalConvolution(PlainConvolution):
    """Over frames, too. Wide formats add up one convolution per tap: three times as fast on a CPU as PyTorch's own over
    frames; in 16 bits every sum would be rounded, so it is PyTorch's own there.
    """

    def making_bytes(self, rows: int) -> int:
        """Of one tap's results for some frames."""
        wanted = self.wanted
        row = wanted.channels[1] * (wanted.width // wanted.stride) * wanted.dtype.itemsize
        return rows * min(_FRAMES, wanted.images) * row if not self.frames_before else 0

    def arrange(self, memory: Memory, weight: Tensor, odd: bool) -> Any:
        if not self.frames_before:
            return [tap.contiguous(memory_format=memory.memory_format) for tap in weight.unbind(2)]
        innermost = memory.memory_format == torch.channels_last
        return weight.contiguous(memory_format=torch.channels_last_3d if innermost else torch.contiguous_format)

    def run(
        self, memory: Memory, window: Tensor, weight: Any, bias: Tensor | None, top: int, rows: int, odd: bool
    ) -> Tensor:
        pad, stride = 0 if sum(self.columns) else self.wanted.pads[0], self.wanted.stride
        if self.frames_before:
            clip = window.transpose(0, 1)[None]  # (1, in, T + taps - 1, n, W): a strip is a clip, channels innermost
            return functional.conv3d(clip, weight, bias, (1, stride, stride), padding=(0, 0, pad))[0].transpose(0, 1)
        own, *earlier = reversed(weight)
        out = functional.conv2d(window, own, bias, stride, padding=(0, pad))
        for back, tap in enumerate(earlier, start=1):
            for first in range(back, len(out), _FRAMES):
                part = out[first : first + _FRAMES]
                part += functional.conv2d(window[first - back :][: len(part)], tap, None, stride, padding=(0, pad))
        return out


@dataclass(frozen=True, kw_only=True)
class PlainUpsample(PlainConvolution):
    """See `plain_upsample`."""

    def making_bytes(self, rows: int) -> int:
        """Of one parity's results."""
        wanted = self.wanted
        return -(-rows // 2) * wanted.images * wanted.channels[1] * (wanted.width + 1) * wanted.dtype.itemsize

    def arrange(self, memory: Memory, weight: Tensor, odd: bool) -> Any:
        order = memory.memory_format
        at_once = _fold_channels(self.wanted)
        return [[_folded(weight, r, c, order, at_once) for c in (0, 1)] for r in (0, 1)]

    def run(
        self, memory: Memory, window: Tensor, weight: Any, bias: Tensor | None, top: int, rows: int, odd: bool
    ) -> Tensor:
        # The window begins with source row (top - 1) // 2.
        pad, bottom, first = 0 if sum(self.columns) else 1, top + rows, (top - 1) // 2
        width = window.shape[3] - 2 + 2 * pad
        out = memory.empty(len(window), weight[0][0].shape[0], rows, 2 * width)
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
