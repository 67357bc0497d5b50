"""Blocks of tiles: the memory that the kernels of tiles.c take, and how they are called."""

from __future__ import annotations

import math
from ctypes import CDLL, c_int, c_ssize_t, c_void_p
from typing import NamedTuple

import torch
from torch import Tensor

from ..method import Machine
from ..winograd import TILE
from .filters import CONVOLVE, UPSAMPLE_EVEN, UPSAMPLE_ODD, Filters
from .packing import pack_weight, packing_bytes

_POINTS = (TILE + 2) ** 2
_BLOCK_TILES = 48
"""Fewer read the weights more often than these can be fetched, more leave the nearest caches."""
_SCRATCH_BYTES = 14 * 2**20
_THREAD_BYTES = 4 * 2**20
"""Scratch memory of all threads together, and how much each may take where they are many."""
_SOME_CHANNELS = 128
"""Results of an upsample that are made at once: products of more would take more memory than everything else."""


class Blocks(NamedTuple):
    """Sizes of one layer's blocks of tiles, and the convolution: F(4x4, 3x3) like `winograd.py`, in one piece.

    There every step goes through main memory, since a matrix product of a library wants many rows; here a block of
    tiles stays in a CPU's caches from the first step to the last.
    """

    in_channels: int
    out_channels: int
    width: int
    """Columns of the source."""
    planes: int
    """Products of a tile: one for each filter at each point."""
    block: int
    """Tiles that a thread takes through all steps at once."""
    threads: int
    pad: int
    panel: int
    """Results whose weights lie together."""
    depth: int
    """Channels that are added up at once."""
    some: int
    """Channels of results that are made at once."""
    filters: tuple[Filters, ...]
    """Of a convolution; or of an upsample whose tiles begin with even rows of results, and with odd ones."""
    library: CDLL
    taps: int = 1
    """Frames that a result sees: its own and those before it."""

    @property
    def columns(self) -> tuple[int, int]:
        """Columns of the window left and right of the source's."""
        return 1, -(-self.width // TILE) * TILE + 1 - self.width

    @property
    def own(self) -> int:
        """Elements of a thread's scratch memory."""
        values, products = (self.block * channels + self.pad for channels in (self.in_channels, self.some))
        return self.taps * _POINTS * values + self.planes * products

    @property
    def scratch_bytes(self) -> int:
        """Bytes of all threads' scratch memory."""
        return self.threads * self.own * torch.float32.itemsize

    @property
    def product_bytes(self) -> int:
        """Bytes that products take beside it."""
        return 0

    @property
    def weight_bytes(self) -> int:
        """Bytes of the transformed weights."""
        return self.taps * self.planes * self.in_channels * self.out_channels * torch.float32.itemsize

    @property
    def transform_bytes(self) -> int:
        """Bytes that their transformation takes beside the result."""
        return packing_bytes(self.planes, self.panel, min(self.depth, self.in_channels))

    def transform_weight(self, weight: Tensor, *, odd: bool = False) -> Tensor:
        """(out, in, 3, 3), of several taps (out, in, taps, 3, 3) -> flat, of `weight_bytes`, as `run` wants it with the
        same `odd`.
        """
        result = torch.empty(self.weight_bytes // torch.float32.itemsize, dtype=weight.dtype)
        start = 0
        for tap in weight.unbind(2) if weight.ndim == 5 else [weight]:
            for part in tap.split(self.some):
                size = self.planes * self.in_channels * len(part)
                pack_weight(part, self.filters[odd], self.panel, self.depth, result[start : start + size])
                start += size
        return result

    def run(
        self, window: Tensor, weight: Tensor, bias: Tensor | None, scratch: Tensor, out: Tensor, top: int = 0,
        *, odd: bool = False,
    ) -> None:  # fmt: skip
        """Write rows of the result into `out`, one image or one clip; nothing is done to tensors without data.

        Args:    window: (n, width + sum(columns), in), dense, of clips (T, n, width + sum(columns), in): of a
                 convolution n is two more than rows, or more; of an upsample it is the source from row (top - 1) // 2
                 on, with its borders.
                 weight: from `transform_weight`. bias: (out,) or None. scratch: flat, float32, of `scratch_bytes`.
                 out: (rows, width or 2 * width, out), dense, of clips (T, ...). top: its first row, for an upsample.
                 odd: tiles begin with odd rows of results, as they must where `top` is odd.
        """
        if type(out) is not Tensor:
            return
        assert odd or top % 2 == 0
        skip = int(odd and top % 2 == 0)  # the row above begins the first tiles
        *clip, height, _, _ = window.shape
        frames, frame = (clip[0], window.stride(0)) if clip else (1, 0)
        self.library.tile_convolve(
            *(window.data_ptr(), window.stride(-3), height),
            *(weight.data_ptr(), None if bias is None else bias.data_ptr(), out.data_ptr()),
            *(out.shape[-3], self.width, self.in_channels, self.out_channels, self.block, self.threads),
            *(scratch.data_ptr(), self.own, self.some, self.filters[odd].kind, skip, frame, frames, self.taps),
        )


def plan_tiles(machine: Machine, channels: tuple[int, int], width: int, rows: int, taps: int = 1) -> Blocks | None:
    """For a source of that width and strips of so many rows; None where there are no kernels for it."""
    return plan_blocks(machine, channels, width, rows, (CONVOLVE,), taps=taps)


def plan_upsample_tiles(machine: Machine, channels: tuple[int, int], width: int, rows: int) -> Blocks | None:
    """The same for an upsample, by rows of its source: 81 products of 6x6 source values for 8x8 results."""
    return plan_blocks(machine, channels, width, rows, (UPSAMPLE_EVEN, UPSAMPLE_ODD), _SOME_CHANNELS)


def plan_blocks(
    machine: Machine,
    channels: tuple[int, int],
    width: int,
    rows: int,
    filters: tuple[Filters, ...],
    some: int | None = None,
    taps: int = 1,
) -> Blocks | None:
    """For (in, out) channels and strips of so many rows of the source; None where there is no kernel for these.

    `some`: results that are made at once at most, in channels and whole panels; None: all.
    """
    wide, narrow = channels
    threads, library = machine
    if library is None or wide % library.tile_lanes() or narrow % library.tile_panel():
        return None
    step = library.tile_rows()
    fixed = threads, library.tile_pad(), library.tile_panel(), library.tile_depth(), min(narrow, some or narrow)
    one = Blocks(wide, narrow, width, len(filters[0].taps), step, *fixed, filters, library, taps)
    room = max(_SCRATCH_BYTES, threads * _THREAD_BYTES) // one.scratch_bytes * step
    share = math.ceil(math.ceil(rows / TILE) * math.ceil(width / TILE) / threads / step) * step
    return one._replace(block=max(step, min(_BLOCK_TILES // step * step, room, share)))


def declare(library: CDLL) -> None:
    """Set the types of `tile_convolve`."""
    library.tile_convolve.argtypes = [
        *(c_void_p, c_ssize_t, c_int),
        *[c_void_p] * 3,
        *[c_int] * 6,
        *(c_void_p, c_ssize_t),
        *[c_int] * 3,
        *(c_ssize_t, c_int, c_int),
    ]
    library.tile_convolve.restype = None
