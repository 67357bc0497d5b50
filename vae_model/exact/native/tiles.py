"""3x3 convolutions by the kernels of tiles.c, which are Winograd's F(4x4, 3x3) like `winograd.py` in one piece.

There every step goes through main memory, since a matrix product of a library wants many rows; here a block of tiles
stays in a processor's caches from the first step to the last.
"""

from __future__ import annotations

from ctypes import CDLL, c_int, c_ssize_t, c_void_p
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..spec import Conv
from ..winograd import TAPS, TILE, window_rows
from .compiler import load

_POINTS = (TILE + 2) ** 2
_LEAST_TILES = 48
"""Of a block: each reads all weights again."""
_SCRATCH_BYTES = 40 * 2**20
_THREAD_BYTES = 4 * 2**20
"""Scratch memory of all threads together, and how much each may take where they are many."""


class NativeTiles(NamedTuple):
    """Sizes of one convolution's blocks, and the convolution."""

    in_channels: int
    out_channels: int
    width: int
    block: int
    """Tiles that a thread takes through all steps at once."""
    threads: int
    pad: int
    panel: int
    """Results whose weights lie together."""

    @property
    def columns(self) -> tuple[int, int]:
        """Columns of the window left and right of the source's."""
        return 1, -(-self.width // TILE) * TILE + 1 - self.width

    @property
    def own(self) -> int:
        """Elements of a thread's scratch memory."""
        return _POINTS * self.block * (self.in_channels + self.out_channels + 2 * self.pad)

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
        return _POINTS * self.in_channels * self.out_channels * torch.float32.itemsize

    @property
    def transform_bytes(self) -> int:
        """Bytes that `transform_weight` takes beside its result, those of one panel in float64."""
        return 8 * (_POINTS + 2 * 9) * self.panel * self.in_channels

    def transform_weight(self, weight: Tensor) -> Tensor:
        """(out, in, 3, 3) -> (36, out / panel, in, panel), computed in float64 and rounded once."""
        out_channels, in_channels = weight.shape[:2]
        result = torch.empty(_POINTS, out_channels // self.panel, in_channels, self.panel, dtype=weight.dtype)
        taps = torch.kron(TAPS, TAPS)
        for number, some in enumerate(weight.split(self.panel)):
            made = taps @ some.double().permute(2, 3, 1, 0).reshape(9, -1)
            result[:, number] = made.view(_POINTS, in_channels, self.panel)
            del made
        return result

    def convolve(self, window: Tensor, weight: Tensor, bias: Tensor | None, scratch: Tensor, out: Tensor) -> None:
        """Write the convolution of a window into `out`, one image.

        Args:    window: (window_rows(n), width + sum(columns), in), dense. weight: from `transform_weight`.
                 bias: (out,) or None. scratch: flat, float32, of `scratch_bytes`. out: (n, width, out), dense.
        """
        library = kernels()
        if library is not None and type(out) is Tensor:  # tensors without data are others
            _run(library, self, window, weight, bias, scratch, out)


def _run(
    library: CDLL, tiles: NativeTiles, window: Tensor, weight: Tensor, bias: Tensor | None, scratch: Tensor, out: Tensor
) -> None:
    library.tile_convolve(
        window.data_ptr(),
        window.stride(0),
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        out.data_ptr(),
        *(out.shape[0], tiles.width, tiles.in_channels, tiles.out_channels, tiles.block, tiles.threads),
        scratch.data_ptr(),
        tiles.own,
    )


def plan_native_tiles(conv: Conv, width: int, rows: int) -> NativeTiles | None:
    """The geometry for a source of that width and strips of so many rows; None where there are no kernels for it."""
    library = kernels()
    if library is None or conv.in_channels % library.tile_lanes() or conv.out_channels % library.tile_panel():
        return None
    return _plan(library, conv.in_channels, conv.out_channels, width, rows, torch.get_num_threads())


def _plan(library: CDLL, wide: int, narrow: int, width: int, rows: int, threads: int) -> NativeTiles:
    step = library.tile_rows()
    one = NativeTiles(wide, narrow, width, step, threads, library.tile_pad(), library.tile_panel())
    room = max(_SCRATCH_BYTES, threads * _THREAD_BYTES) // one.scratch_bytes * step
    share = -(-(-(-rows // TILE) * -(-width // TILE)) // threads)
    block = min(max(_LEAST_TILES, (wide + narrow) // 8), room, -(-share // step) * step)
    return one._replace(block=max(1, block // step) * step)


@cache
def kernels() -> CDLL | None:
    """The functions of tiles.c, or None."""
    return load(Path(__file__).with_name("tiles.c"), _declare, _is_right)


def _declare(library: CDLL) -> None:
    library.tile_convolve.argtypes = [
        *(c_void_p, c_ssize_t, c_void_p, c_void_p, c_void_p),
        *([c_int] * 6),
        *(c_void_p, c_ssize_t),
    ]
    library.tile_convolve.restype = None


@torch.no_grad()
def _is_right(library: CDLL) -> bool:
    """A small convolution that ends with parts of tiles."""
    channels, rows, width = library.tile_panel(), 6, 9
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, rows + 2, width + 2, generator=generator)
    weight, bias = torch.randn(channels, channels, 3, 3, generator=generator), torch.arange(1.0, channels + 1)
    tiles = _plan(library, channels, channels, width, rows, torch.get_num_threads())
    window = functional.pad(x, (0, tiles.columns[1] - 1, 0, window_rows(rows) - rows - 2))
    out = torch.full((rows, width, channels), torch.nan)
    scratch = torch.full((tiles.scratch_bytes // 4,), torch.nan)
    _run(library, tiles, window[0].permute(1, 2, 0).contiguous(), tiles.transform_weight(weight), bias, scratch, out)
    expected = functional.conv2d(x.double(), weight.double(), bias.double())[0].permute(1, 2, 0)
    return bool(((out - expected).abs() < 1e-4 * expected.abs().max()).all())
