"""The kernels of tiles.c: loaded and tried out once, and the memory that their blocks of tiles take."""

from __future__ import annotations

import math
from ctypes import CDLL, c_int, c_ssize_t, c_void_p
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..spec import Conv
from ..winograd import TAPS, TILE
from .compiler import load
from .packing import pack_weight, packing_bytes

POINTS = (TILE + 2) ** 2
_BLOCK_TILES = 48
"""Fewer read the weights more often than these can be fetched, more leave the nearest caches."""
_SCRATCH_BYTES = 40 * 2**20
_THREAD_BYTES = 4 * 2**20
"""Scratch memory of all threads together, and how much each may take where they are many."""


class Blocks(NamedTuple):
    """Sizes of one layer's blocks of tiles."""

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

    @property
    def columns(self) -> tuple[int, int]:
        """Columns of the window left and right of the source's."""
        return 1, -(-self.width // TILE) * TILE + 1 - self.width

    @property
    def own(self) -> int:
        """Elements of a thread's scratch memory."""
        values, products = (self.block * channels + self.pad for channels in (self.in_channels, self.out_channels))
        return POINTS * values + self.planes * products

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
        return self.planes * self.in_channels * self.out_channels * torch.float32.itemsize

    @property
    def transform_bytes(self) -> int:
        """Bytes that their transformation takes beside the result."""
        return packing_bytes(self.planes, self.panel, self.in_channels)


def plan_blocks(conv: Conv, width: int, tiles: int, planes: int) -> Blocks | None:
    """For a source of that width and strips of so many tiles; None where there are no kernels for the layer."""
    library = kernels()
    if library is None or conv.in_channels % library.tile_lanes() or conv.out_channels % library.tile_panel():
        return None
    return _plan(library, conv.in_channels, conv.out_channels, width, tiles, planes, torch.get_num_threads())


def _plan(library: CDLL, wide: int, narrow: int, width: int, tiles: int, planes: int, threads: int) -> Blocks:
    step = library.tile_rows()
    fixed = threads, library.tile_pad(), library.tile_panel(), library.tile_depth()
    one = Blocks(wide, narrow, width, planes, step, *fixed)
    room = max(_SCRATCH_BYTES, threads * _THREAD_BYTES) // one.scratch_bytes * step
    share = math.ceil(tiles / threads / step) * step
    return one._replace(block=max(step, min(_BLOCK_TILES // step * step, room, share)))


def run_tiles(
    blocks: Blocks,
    window: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scratch: Tensor,
    out: Tensor,
    kind: int = 0,
    skip: int = 0,
) -> None:
    """Call `tile_convolve`, which says what it takes; nothing is done to tensors without data."""
    library = kernels()
    if library is not None and type(out) is Tensor:
        _run(library, blocks, window, weight, bias, scratch, out, kind, skip)


def _run(
    library: CDLL,
    blocks: Blocks,
    window: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scratch: Tensor,
    out: Tensor,
    kind: int,
    skip: int,
) -> None:
    library.tile_convolve(
        *(window.data_ptr(), window.stride(0), window.shape[0]),
        *(weight.data_ptr(), None if bias is None else bias.data_ptr(), out.data_ptr()),
        *(out.shape[0], blocks.width, blocks.in_channels, blocks.out_channels, blocks.block, blocks.threads),
        *(scratch.data_ptr(), blocks.own, kind, skip),
    )


@cache
def kernels() -> CDLL | None:
    """The functions of tiles.c, or None."""
    return load(Path(__file__).with_name("tiles.c"), _declare, _is_right)


def _declare(library: CDLL) -> None:
    library.tile_convolve.argtypes = [
        *(c_void_p, c_ssize_t, c_int),
        *[c_void_p] * 3,
        *[c_int] * 6,
        *(c_void_p, c_ssize_t, c_int, c_int),
    ]
    library.tile_convolve.restype = None


@torch.no_grad()
def _is_right(library: CDLL) -> bool:
    """A small convolution that ends with parts of tiles."""
    channels, rows, width = library.tile_panel(), 6, 9
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, rows + 2, width + 2, generator=generator)
    weight, bias = torch.randn(channels, channels, 3, 3, generator=generator), torch.arange(1.0, channels + 1)
    blocks = _plan(library, channels, channels, width, 6, POINTS, torch.get_num_threads())
    packed = pack_weight(weight, torch.kron(TAPS, TAPS), [1] * POINTS, blocks.panel, blocks.depth)
    window = functional.pad(x, (0, blocks.columns[1] - 1))[0].permute(1, 2, 0).contiguous()
    out = torch.full((rows, width, channels), torch.nan)
    scratch = torch.full((blocks.scratch_bytes // 4,), torch.nan)
    _run(library, blocks, window, packed, bias, scratch, out, 0, 0)
    expected = functional.conv2d(x.double(), weight.double(), bias.double())[0].permute(1, 2, 0)
    return bool(((out - expected).abs() < 1e-4 * expected.abs().max()).all())
