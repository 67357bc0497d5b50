"""Approximate: classic overlapping tiles, blended with linear ramps in one normalised pass.

Every tile gets its own GroupNorm statistics and its own attention, so colours shift and seams can show; it exists for
comparison and for models that cannot be run in strips. It is never called exact.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor


def tile_starts(size: int, tile: int, overlap: int) -> list[int]:
    """First rows of tiles of `tile` rows that cover `size` rows and share at least `overlap`; all tiles are whole."""
    if size <= tile:
        return [0]
    return [*range(0, size - tile, tile - overlap), size - tile]


def ramps(size: int, starts: list[int], tile: int) -> list[Tensor]:
    """The weight of each tile's rows: linear over shared rows; the sum over tiles is 1 in every row."""
    length = min(tile, size)
    weights: list[Tensor] = []
    for index, start in enumerate(starts):
        ramp = torch.ones(length)
        if index > 0 and (shared := starts[index - 1] + length - start) > 0:
            ramp[:shared] = torch.arange(1, shared + 1) / (shared + 1)
        if index + 1 < len(starts) and (shared := start + length - starts[index + 1]) > 0:
            ramp[length - shared :] = torch.minimum(ramp[length - shared :], torch.arange(shared, 0, -1) / (shared + 1))
        weights.append(ramp)
    total = torch.zeros(size)
    for start, ramp in zip(starts, weights, strict=True):
        total[start : start + length] += ramp
    return [ramp / total[start : start + length] for start, ramp in zip(starts, weights, strict=True)]


def _scaled(size: int, scale: tuple[int, int]) -> int:
    return size * scale[0] // scale[1]


def blend_tiles(
    run: Callable[[Tensor], Tensor],
    x: Tensor,
    out: Tensor,
    *,
    tile: tuple[int, int],
    overlap: int,
    scale: tuple[int, int],
    on_tile: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Run a decoder or encoder tile by tile and blend the results into `out`. Approximate.

    Args:    run: one tile (B, C, th, tw) -> (B, D, th * scale, tw * scale).
             x: (B, C, H, W), both sides multiples of scale[1].
             out: (B, D, H * scale, W * scale), any strides, float; overwritten.
             tile, overlap: in rows and columns of x, multiples of scale[1]; overlap is less than the smaller tile side.
             scale: output over input size as a fraction, (8, 1) for an f8 decoder and (1, 8) for its encoder.
             on_tile: called with (tiles done, tiles in all) after each tile.
    Returns: `out`.
    """
    height, width = x.shape[2:]
    tile_h, tile_w = min(tile[0], height), min(tile[1], width)
    if not 0 <= overlap < min(tile):
        raise ValueError(
            f"overlap: expected 0 to {min(tile) - 1} for tiles of {min(tile)}, got {overlap}: make it smaller"
        )
    rows, columns = tile_starts(height, tile_h, overlap), tile_starts(width, tile_w, overlap)
    out_rows, out_columns = ([_scaled(start, scale) for start in starts] for starts in (rows, columns))
    out_tile_h, out_tile_w = _scaled(tile_h, scale), _scaled(tile_w, scale)
    row_ramps = ramps(out.shape[2], out_rows, out_tile_h)
    column_ramps = ramps(out.shape[3], out_columns, out_tile_w)
    out.zero_()
    count = len(rows) * len(columns)
    for done, (i, j) in enumerate(product(range(len(rows)), range(len(columns))), start=1):
        piece = run(x[:, :, rows[i] : rows[i] + tile_h, columns[j] : columns[j] + tile_w]).to(out.device, out.dtype)
        piece = piece * row_ramps[i].to(out)[:, None]
        piece *= column_ramps[j].to(out)
        target = out[:, :, out_rows[i] : out_rows[i] + out_tile_h, out_columns[j] : out_columns[j] + out_tile_w]
        target += piece
        if on_tile is not None:
            on_tile(done, count)
    return out
