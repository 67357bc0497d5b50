"""Which method does a convolution: one table, asked once for each layer of a pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .cpu.blocks import Blocks, plan_tiles, plan_upsample_tiles
from .cpu.kernels import kernels
from .method import Machine, Memory, Method, Wanted
from .plain import plain_convolution, plain_upsample
from .profile import profile_of
from .winograd import LEAST_CHANNELS, LEAST_WIDTH, ProductTiles, plan_product_tiles, window_rows
from .winograd_upsample import ProductUpsample, plan_product_upsample

Tiles: TypeAlias = Blocks | ProductTiles | ProductUpsample


@dataclass(frozen=True, kw_only=True)
class Tiled(Method):
    """By tiles, image by image: fewer multiplications, more memory."""

    tiles: Tiles
    scale: int
    """1 for a convolution, 2 for an upsample."""
    is_clip: bool
    """Whether results see the frames before their own."""

    def rows_below(self, rows: int) -> int:
        return window_rows(rows) - rows - 2 if self.scale == 1 else 0

    def arrange(self, memory: Memory, weight: Tensor, odd: bool) -> Any:
        return self.tiles.transform_weight(weight, odd=odd)

    def run(
        self, memory: Memory, window: Tensor, weight: Any, bias: Tensor | None, top: int, rows: int, odd: bool
    ) -> Tensor:
        out = memory.empty(len(window), self.tiles.out_channels, rows, self.scale * self.tiles.width)
        scratch = memory.scratch(self.scratch_bytes)
        top = top if self.scale == 2 else 0  # to a convolution odd rows are like even ones
        sources, results = window.permute(0, 2, 3, 1), out.permute(0, 2, 3, 1)
        whole = [(sources, results)] if self.is_clip else zip(sources, results, strict=True)
        for x, y in whole:
            self.tiles.run(x, weight, bias, scratch, y, top, odd=odd)
        return out


def pays(wanted: Wanted) -> bool:
    """Whether a convolution can take fewer multiplications, and gains by it."""
    return (
        wanted.rows > 0
        and wanted.groups == 1
        and wanted.dtype == torch.float32
        and profile_of(wanted.device_type).fewer_multiplications
        and wanted.channels_last
        and (wanted.kernel, wanted.stride, wanted.pads) == (3, 1, (1, 1))
        and min(wanted.channels) >= LEAST_CHANNELS
        and wanted.width >= LEAST_WIDTH
    )


def _tiled(wanted: Wanted, plan: Callable[[tuple[int, int], int, int], Tiles | None], scale: int) -> Method | None:
    tiles = plan(wanted.channels, wanted.width, -(-wanted.rows // scale)) if pays(wanted) else None
    if tiles is None:
        return None
    scratch_bytes = max(tiles.scratch_bytes, tiles.transform_bytes)
    sizes = tiles.columns, tiles.weight_bytes, 0, scratch_bytes, tiles.product_bytes
    return Tiled(*sizes, tiles=tiles, scale=scale, is_clip=wanted.taps > 1)


METHODS: dict[str, tuple[Callable[[Wanted], Method | None], ...]] = {
    "convolve": (
        lambda wanted: _tiled(wanted, partial(plan_tiles, wanted.machine, taps=wanted.taps), 1),
        lambda wanted: _tiled(wanted, plan_product_tiles, 1) if wanted.taps == 1 else None,
        plain_convolution,
    ),
    "upsample": (
        lambda wanted: _tiled(wanted, partial(plan_upsample_tiles, wanted.machine), 2),
        lambda wanted: _tiled(wanted, plan_product_upsample, 2),
        plain_upsample,
    ),
}
"""By kind of op: those that may do it, the best first; the last one always can."""


def method_for(kind: str, wanted: Wanted) -> Method:
    """The first of the table that can do it."""
    return next(method for make in METHODS[kind] if (method := make(wanted)) is not None)


def this_machine(device_type: str, dtype: torch.dtype) -> Machine:
    """What runs of this dtype on this kind of device depend on here and now; kernels of our own are built for it."""
    fast = profile_of(device_type).fewer_multiplications and dtype == torch.float32
    return Machine(torch.get_num_threads(), kernels() if fast else None)
