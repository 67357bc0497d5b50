"""Which method does a convolution: one table, asked once for each layer of a pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from .cpu.blocks import Blocks, plan_tiles, plan_upsample_tiles
from .cpu.kernels import kernels
from .method import Machine, Memory, Method, Wanted
from .plain import PlainConvolution, PlainUpsample
from .profile import profile_of
from .winograd import LEAST_CHANNELS, LEAST_WIDTH, ProductTiles, plan_product_tiles, window_rows
from .winograd_upsample import ProductUpsample, plan_product_upsample

Tiles: TypeAlias = Blocks | ProductTiles | ProductUpsample


@dataclass(frozen=True)
class Tiled:
    """By tiles, image by image: fewer multiplications, more memory."""

    tiles: Tiles
    scale: int
    """1 for a convolution, 2 for an upsample."""

    fold_bytes = 0

    @property
    def columns(self) -> tuple[int, int]:
        """To fill up the tiles."""
        return self.tiles.columns

    @property
    def weight_bytes(self) -> int:
        """Of transformed weights."""
        return self.tiles.weight_bytes

    @property
    def scratch_bytes(self) -> int:
        """For the transform of the weights, too."""
        return max(self.tiles.scratch_bytes, self.tiles.transform_bytes)

    @property
    def product_bytes(self) -> int:
        """Of a library."""
        return self.tiles.product_bytes

    def rows_below(self, rows: int) -> int:
        """To fill up the tiles."""
        return window_rows(rows) - rows - 2 if self.scale == 1 else 0

    def making_bytes(self, rows: int) -> int:
        """None."""
        return 0

    def arrange(self, memory: Memory, weight: Tensor, odd: bool) -> Tensor:
        """Transformed."""
        return self.tiles.transform_weight(weight, odd=odd)

    def run(
        self, memory: Memory, window: Tensor, weight: Tensor, bias: Tensor | None, top: int, rows: int, odd: bool
    ) -> Tensor:
        """(B, out, rows, W)."""
        out = memory.empty(self.tiles.out_channels, rows, self.scale * self.tiles.width)
        scratch = memory.scratch(self.scratch_bytes)
        for x, y in zip(window.permute(0, 2, 3, 1), out.permute(0, 2, 3, 1), strict=True):
            self.tiles.run(x, weight, bias, scratch, y, top, odd=odd)
        return out


def pays(wanted: Wanted) -> bool:
    """Whether a convolution can take fewer multiplications, and gains by it."""
    return (
        wanted.rows > 0
        and wanted.dtype == torch.float32
        and profile_of(wanted.device_type).fewer_multiplications
        and wanted.channels_last
        and (wanted.kernel, wanted.stride, wanted.pads) == (3, 1, (1, 1))
        and min(wanted.channels) >= LEAST_CHANNELS
        and wanted.width >= LEAST_WIDTH
    )


def _native(wanted: Wanted) -> Method | None:
    return _tiled(wanted, partial(plan_tiles, wanted.machine), 1)


def _products(wanted: Wanted) -> Method | None:
    return _tiled(wanted, plan_product_tiles, 1)


def _native_upsample(wanted: Wanted) -> Method | None:
    return _tiled(wanted, partial(plan_upsample_tiles, wanted.machine), 2)


def _product_upsample(wanted: Wanted) -> Method | None:
    return _tiled(wanted, plan_product_upsample, 2)


def _tiled(wanted: Wanted, plan: Callable[[tuple[int, int], int, int], Tiles | None], scale: int) -> Method | None:
    tiles = plan(wanted.channels, wanted.width, -(-wanted.rows // scale)) if pays(wanted) else None
    return None if tiles is None else Tiled(tiles, scale)


METHODS: dict[str, tuple[Callable[[Wanted], Method | None], ...]] = {
    "convolve": (_native, _products, PlainConvolution),
    "upsample": (_native_upsample, _product_upsample, PlainUpsample),
}
"""By kind of op: those that may do it, the best first; the last one always can."""


def method_for(kind: str, wanted: Wanted) -> Method:
    """The first of the table that can do it."""
    return next(method for make in METHODS[kind] if (method := make(wanted)) is not None)


def this_machine(device_type: str, dtype: torch.dtype) -> Machine:
    """What runs of this dtype on this kind of device depend on here and now; kernels of our own are built for it."""
    fast = profile_of(device_type).fewer_multiplications and dtype == torch.float32
    return Machine(torch.get_num_threads(), kernels() if fast else None)
