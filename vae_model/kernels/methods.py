"""How 3x3 convolutions take fewer multiplications: by kernels of our own, or else by a library's products."""

from __future__ import annotations

from typing import TypeAlias

from .cpu.convolve import NativeTiles, plan_native_tiles
from .cpu.upsample import NativeUpsample, plan_native_upsample
from .winograd import ProductTiles, plan_product_tiles
from .winograd_upsample import ProductUpsample, plan_product_upsample

Tiles: TypeAlias = "NativeTiles | ProductTiles"
UpsampleTiles: TypeAlias = "NativeUpsample | ProductUpsample"


def plan_tiles(channels: tuple[int, int], width: int, rows: int, threads: int) -> Tiles:
    """The tiles of a source of that width in strips of so many rows, for a convolution for which this pays.

    Args:    channels: of the source and of the result. threads: that will work at it.
    """
    return plan_native_tiles(channels, width, rows, threads) or plan_product_tiles(channels, width, rows)


def plan_upsample_tiles(channels: tuple[int, int], width: int, rows: int, threads: int) -> UpsampleTiles:
    """The same for an upsample, by rows of its source."""
    return plan_native_upsample(channels, width, rows, threads) or plan_product_upsample(channels, width, rows)
