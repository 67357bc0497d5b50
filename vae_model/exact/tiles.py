"""How 3x3 convolutions take fewer multiplications: by kernels of our own, or else by a library's products."""

from __future__ import annotations

from typing import TypeAlias

from .native.tiles import NativeTiles, plan_native_tiles
from .spec import Conv
from .winograd import ProductTiles, plan_product_tiles

Tiles: TypeAlias = "NativeTiles | ProductTiles"


def plan_tiles(conv: Conv, width: int, rows: int) -> Tiles:
    """The tiles of a source of that width in strips of so many rows, for a convolution for which this pays."""
    return plan_native_tiles(conv, width, rows) or plan_product_tiles(conv, width, rows)
