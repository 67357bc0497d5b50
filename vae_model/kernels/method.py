"""What a convolution is wanted for, and what every method of doing it answers."""

from __future__ import annotations

from ctypes import CDLL
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor


class Machine(NamedTuple):
    """What methods depend on beside the layer: asked once, before a plan is made."""

    threads: int = 1
    """That work at a convolution on a CPU: they have scratch memory of their own."""
    tiles: CDLL | None = None
    """The functions of tiles.c, where they can be used."""


class Wanted(NamedTuple):
    """One convolution of planes of one width."""

    channels: tuple[int, int]
    """Of the source and of the result."""
    width: int
    """Columns of the source."""
    rows: int
    """Rows of results of a strip, where a method of fewer multiplications may be taken; 0 for none."""
    kernel: int
    stride: int
    pads: tuple[int, int]
    """Above and on the left, below and on the right."""
    zeros: bool
    """Whether rows and columns beyond the border are zeros."""
    copies: bool
    """Whether weights are copied into the run's memory order."""
    taps: int
    """Frames that a result sees."""
    images: int
    """Pictures or frames of the result."""
    dtype: torch.dtype
    device_type: str
    channels_last: bool
    machine: Machine
    groups: int = 1
    """Of channels, each of which is convolved for itself."""


class Memory(Protocol):
    """Where a method's tensors come from."""

    @property
    def memory_format(self) -> torch.memory_format: ...

    def empty(self, images: int, channels: int, rows: int, width: int) -> Tensor:
        """Room for so many pictures or frames."""
        ...

    def scratch(self, size: int) -> Tensor:
        """At least so many bytes of flat float32 memory for use within one call."""
        ...


@dataclass(frozen=True)
class Method:
    """One way to do a convolution, of sizes known beforehand."""

    columns: tuple[int, int]
    """Columns of the window left and right of the source's."""
    weight_bytes: int
    """Of the weights that `arrange` makes."""
    fold_bytes: int = 0
    """Beside them while they are made, if no scratch memory is taken for it."""
    scratch_bytes: int = 0
    product_bytes: int = 0
    """That a matrix product takes beside the scratch memory."""
    one_arrangement: ClassVar[bool] = False
    """Whether weights are arranged for strips that begin with odd rows as for all others."""
    frames_before: int = 0
    """Frames of zeros that the window of a clip begins with."""

    def rows_below(self, rows: int) -> int:
        """Rows of zeros that the window ends with, for so many rows of results."""
        return 0

    def making_bytes(self, rows: int) -> int:
        """Bytes beside window and result while so many rows are made."""
        return 0

    def arrange(self, memory: Memory, weight: Tensor, odd: bool) -> Any:
        """Weights (out, in, k, k), of several taps (out, in, taps, k, k), as `run` wants them with the same `odd`."""
        raise NotImplementedError

    def run(
        self, memory: Memory, window: Tensor, weight: Any, bias: Tensor | None, top: int, rows: int, odd: bool
    ) -> Tensor:
        """Rows top, top + 1, ... of the result, (B, out, rows, W).

        Args:    window: (B, in, n, W + sum(columns)); a clip begins with `frames_before` more.
                 weight: from `arrange`. bias: (out,) or None.
                 odd: whether strips of an upsample may begin with odd rows.
        """
        raise NotImplementedError
