"""Single layers as numbers that decide what they compute.

A specification holds the module itself but never its weights: those come from the weight provider when a run needs
them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
        return 2 * taps * self.in_channels * self.out_channels * batch * result.frames * result.height * result.width


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
