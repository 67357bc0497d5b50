"""How 3x3 convolutions take fewer multiplications: by kernels of our own, or else by a library's products."""

from __future__ import annotations

from typing import TypeAlias

from .enlarge_tiles import ProductEnlargement, plan_product_enlargement
from .native.enlarge import NativeEnlargement, plan_native_enlargement
from .native.tiles import NativeTiles, plan_native_tiles
from .spec import Conv
from .winograd import ProductTiles, plan_product_tiles

Tiles: TypeAlias = "NativeTiles | ProductTiles"
EnlargedTiles: TypeAlias = "NativeEnlargement | ProductEnlargement"


def plan_tiles(conv: Conv, width: int, rows: int) -> Tiles:
    """The tiles of a source of that width in strips of so many rows, for a convolution for which this pays."""
    return plan_native_tiles(conv, width, rows) or plan_product_tiles(conv, width, rows)


def plan_enlarged_tiles(conv: Conv, width: int, rows: int) -> EnlargedTiles:
    """The same for an enlargement, by rows of its source."""
    return plan_native_enlargement(conv, width, rows) or plan_product_enlargement(conv, width, rows)
