"""Steps and programs as data: what an encoder or a decoder does, one step after the other, and the sizes in between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .spec import Conv, Norm, PixelNorm, Statistics
from .temporal_program import TimeConvolve, TimeResidual


@dataclass(frozen=True)
class Convolve:
    """A convolution; a norm and an activation may come before it, a function of single values after it."""

    conv: Conv
    norm: Norm | PixelNorm | None = None
    before: str | None = None
    after: str | None = None


@dataclass(frozen=True)
class Residual:
    """norm1, SiLU, conv1, norm2, SiLU, conv2, plus the input or its 1x1 shortcut."""

    norm1: Norm | PixelNorm
    conv1: Conv
    norm2: Norm | PixelNorm
    conv2: Conv
    shortcut: Conv | None

    @property
    def sweeps(self) -> bool:
        """Whether it needs statistics of the whole image, and its input once more after these."""
        return isinstance(self.norm1, Norm) or isinstance(self.norm2, Norm)


@dataclass(frozen=True)
class Attend:
    """x + proj_out(attention(norm(x))) over all positions, one head."""

    norm: Norm | PixelNorm
    q: Conv
    k: Conv
    v: Conv
    proj_out: Conv


@dataclass(frozen=True)
class Enlarge:
    """Nearest x2, then a 3x3 convolution."""

    conv: Conv


@dataclass(frozen=True)
class TinyBlock:
    """The tiny autoencoder's block: x + pool(x) where there is a pool, three convolutions, plus x, activated."""

    convs: tuple[Conv, Conv, Conv]
    activation: str
    skip: Conv | None
    fuse: str
    pool: tuple[Conv, Norm, str, Conv] | None


@dataclass(frozen=True)
class Unpack:
    """Squares of cells in channels to cells: (4C, h, w) -> (C, 2h, 2w). `statistics`: by which they are normalised."""

    statistics: Statistics | None


@dataclass(frozen=True)
class Pack:
    """The inverse, of the first C channels: (>= C, 2h, 2w) -> (4C, h, w)."""

    statistics: Statistics | None
    channels: int
    """4C."""


Step = Convolve | Residual | Attend | Enlarge | TinyBlock | TimeResidual | TimeConvolve | Unpack | Pack


@dataclass(frozen=True)
class Program:
    """An encoder or a decoder as steps, in order."""

    steps: tuple[Step, ...]
    in_channels: int
    out_channels: int

    @property
    def levels(self) -> tuple[int, ...]:
        """The resolution level of every step's result, counted from 0 in the order they run."""
        levels: list[int] = []
        level = 0
        for index, step in enumerate(self.steps):
            resamples = isinstance(step, Enlarge) or (isinstance(step, Convolve) and step.conv.stride == 2)
            level += resamples and index > 0
            levels.append(level)
        return tuple(levels)

    def out_size(self, height: int, width: int) -> Size:
        """Channels, rows and columns of the result for an input of so many rows and columns."""
        size = Size(self.in_channels, height, width)
        for step in self.steps:
            size = step_size(step, size)
        return size

    @property
    def level_count(self) -> int:
        """How many resolutions there are."""
        return self.levels[-1] + 1


class Size(NamedTuple):
    """Channels, rows and columns of a plane."""

    channels: int
    height: int
    width: int


def step_size(step: Step, size: Size) -> Size:
    """The size of a step's result."""
    if isinstance(step, Enlarge):
        return Size(step.conv.out_channels, 2 * size.height, 2 * size.width)
    if isinstance(step, Convolve):
        return Size(step.conv.out_channels, step.conv.out_size(size.height), step.conv.out_size(size.width))
    if isinstance(step, Residual):
        return size._replace(channels=step.conv2.out_channels)
    if isinstance(step, TinyBlock):
        return size._replace(channels=step.convs[2].out_channels)
    if isinstance(step, Unpack):
        return Size(size.channels // 4, 2 * size.height, 2 * size.width)
    if isinstance(step, Pack):
        return Size(step.channels, size.height // 2, size.width // 2)
    return size
