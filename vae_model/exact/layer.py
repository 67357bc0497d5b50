"""Single layers as numbers that decide what they compute.

A specification holds the module itself but never its weights: those come from the weight provider when a run needs
them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .extent import Extent

PADDING_MODES = ("zeros", "circular", "reflect", "replicate")


class UnsupportedModule(ValueError):
    """A module that the engine has no rule for; the caller runs it the ordinary way and says so."""


@dataclass(frozen=True)
class Conv:
    """A convolution with a square kernel. Pads are rows and columns added before it, in the given mode."""

    module: nn.Module
    name: str
    in_channels: int
    out_channels: int
    kernel: int = 3
    stride: int = 1
    pad_before: int = 1
    """Above and on the left."""
    pad_after: int = 1
    """Below and on the right."""
    mode: str = "zeros"
    first: int = 0
    """The first of the module's output channels that are computed."""
    turned: bool = False
    """Whether rows and columns of its kernel change places."""
    taps: int = 0
    """Frames that a result sees: its own and those before it, of which there are only zeros before the first frame.
    0: the stored weights have no axis of frames, and every frame is a picture."""
    groups: int = 1
    """Of channels, each of which is convolved for itself."""

    def part(self, first: int, channels: int) -> Conv:
        """So many of its output channels, from `first` on."""
        return replace(self, first=self.first + first, out_channels=channels)

    def taps_of(self, frames: int) -> int:
        """Those that count for a clip of so many frames: of a picture the last one alone."""
        return max(1, min(self.taps, frames))

    def of(self, weight: Tensor, bias: Tensor | None, taps: int = 1) -> tuple[Tensor, Tensor | None]:
        """What of the module's weights it computes with: (out, in, k, k), of several taps (out, in, taps, k, k), and
        (out,).
        """
        if self.taps:
            weight = weight[:, :, -1] if taps == 1 else weight[:, :, -taps:]
        weight = weight.transpose(-1, -2) if self.turned else weight
        rows = slice(self.first, self.first + self.out_channels)
        return weight[rows], None if bias is None else bias[rows]

    def read(
        self, weights: Callable[[nn.Module], tuple[Tensor, Tensor | None]], taps: int = 1
    ) -> tuple[Tensor, Tensor | None]:
        """The same, of modules whose weight and bias `weights` tells."""
        return self.of(*weights(self.module), taps)

    @property
    def circular(self) -> bool:
        """Whether rows outside the image are rows of its other end."""
        return self.mode == "circular" and self.pad_before + self.pad_after > 0

    @property
    def channels(self) -> tuple[int, int]:
        """Of the source and of the result."""
        return self.in_channels, self.out_channels

    def out_size(self, size: int) -> int:
        """Rows (or columns) that come out of `size`."""
        return (size + self.pad_before + self.pad_after - self.kernel) // self.stride + 1

    def extent(self, source: Extent) -> Extent:
        """Of the result."""
        height, width = self.out_size(source.height), self.out_size(source.width)
        return Extent(self.out_channels, height, width, source.frames)

    def flops(self, batch: int, result: Extent) -> int:
        """Floating point operations of a result, a multiplication and an addition counted as two."""
        taps = self.kernel**2 * self.taps_of(result.frames)
        products = self.in_channels // self.groups * self.out_channels
        return 2 * taps * products * batch * result.frames * result.height * result.width


@dataclass(frozen=True)
class Chosen(Conv):
    """Of a convolution, or of several side by side, whose results are blocks of so many channels: those of some turns,
    where blocks take turns. Without bias."""

    block: int = 1
    turns: tuple[int, ...] = (0,)
    every: int = 1
    """Block i is one of turn i % every."""

    def read(
        self, weights: Callable[[nn.Module], tuple[Tensor, Tensor | None]], taps: int = 1
    ) -> tuple[Tensor, Tensor | None]:
        """Side by side stand the layers of a ModuleList."""
        layers = list(self.module) if isinstance(self.module, nn.ModuleList) else [self.module]
        blocks = [block for layer in layers for block in weights(layer)[0].split(self.block)]
        chosen = torch.cat([block for number, block in enumerate(blocks) if number % self.every in self.turns])
        return self.of(chosen, None, taps)


@dataclass(frozen=True)
class Recalling(Conv):
    """A convolution of a frame and the one before it, whose stored input channels are those of the two, in this order.
    Of its `taps` there are 2.
    """

    def read(
        self, weights: Callable[[nn.Module], tuple[Tensor, Tensor | None]], taps: int = 1
    ) -> tuple[Tensor, Tensor | None]:
        weight, bias = weights(self.module)
        return self.of(weight.unflatten(1, (2, -1)).flip(1).transpose(1, 2), bias, taps)


@dataclass(frozen=True)
class Reordered(Conv):
    """A convolution whose channels come, or go, in another order than the stored weights have them."""

    inputs: tuple[int, ...] | None = None
    """Of the weights' input channels, in the order of the source; None: as they are."""
    outputs: tuple[int, ...] | None = None

    def read(
        self, weights: Callable[[nn.Module], tuple[Tensor, Tensor | None]], taps: int = 1
    ) -> tuple[Tensor, Tensor | None]:
        weight, bias = weights(self.module)
        if self.inputs is not None:
            weight = weight[:, list(self.inputs)]
        if self.outputs is not None:
            weight, bias = weight[list(self.outputs)], None if bias is None else bias[list(self.outputs)]
        return self.of(weight, bias, taps)


@dataclass(frozen=True)
class Norm:
    """An affine GroupNorm."""

    module: nn.Module
    name: str
    channels: int
    groups: int
    eps: float


@dataclass(frozen=True)
class PixelNorm:
    """Every pixel to the length sqrt(channels), times the module's `gamma`: it needs nothing of other pixels."""

    module: nn.Module
    name: str
    channels: int


@dataclass(frozen=True)
class RootNorm:
    """Every pixel by the root of its mean square and `eps`, times the module's weight, plus its bias."""

    module: nn.Module
    name: str
    channels: int
    eps: float

    def run(self, x: Tensor, weight: Tensor, bias: Tensor) -> None:
        """In place: x (B, C, n, W), weight and bias (C,), float32 or better."""
        lengths = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        x.mul_(lengths.square_().div_(x.shape[1]).add_(self.eps).rsqrt_())
        torch.addcmul(bias[:, None, None], x, weight[:, None, None], out=x)


@dataclass(frozen=True)
class StoredNorm(RootNorm):
    """An affine BatchNorm by what it has stored: nothing of the pixel itself is asked."""

    def run(self, x: Tensor, weight: Tensor, bias: Tensor) -> None:
        module: Any = self.module  # stored numbers are buffers, no weights: nobody patches them
        scale = weight * (module.running_var.to(weight) + self.eps).rsqrt()
        shift = bias - module.running_mean.to(weight) * scale
        torch.addcmul(shift[:, None, None], x, scale[:, None, None], out=x)


@dataclass(frozen=True)
class Statistics:
    """The stored mean and variance of a BatchNorm without parameters."""

    module: nn.Module
    channels: int
    eps: float


@dataclass(frozen=True)
class TimeConv:
    """A convolution over the frames alone."""

    module: nn.Module
    name: str
    channels: int
    kernel: int
    """Frames that a result sees; odd."""

    def flops(self, batch: int, result: Extent) -> int:
        """Floating point operations of a result of as many channels."""
        return 2 * self.kernel * self.channels**2 * batch * result.frames * result.height * result.width
