"""Approximate: classic overlapping tiles, blended with linear ramps in one normalised pass.

Every tile gets its own GroupNorm statistics and its own attention, so colours shift and seams can show; it exists for
comparison and for models that cannot be run in strips. It is never called exact.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from ..errors import MemoryBudgetError
from ..errors.bytesize import format_bytes
from .checks import cells
from .run import ModelRun

TILE_PIXELS = 512
OVERLAP_PIXELS = 64
SMALLEST_TILE_CELLS = 8


def run_blend(run: ModelRun) -> None:
    """Fill the result by overlapping tiles (approximate); where memory runs out the image starts again with smaller
    tiles."""
    x, group, tile_bytes = run.x, run.group, run.untiled_bytes
    scale = (run.factor, 1) if run.what == "decode" else (1, run.factor)
    cell = scale[1]  # rows of x in a latent cell
    side = cell * (TILE_PIXELS // run.factor if run.tile_size is None else cells(run.tile_size, run.factor))
    overlap = cell * cells(OVERLAP_PIXELS if run.overlap is None else run.overlap, run.factor, "overlap")
    smallest = SMALLEST_TILE_CELLS * cell
    run.load(tile_bytes(min(side, x.shape[2]), min(side, x.shape[3])))
    available = run.available()
    while run.tile_size is None and side > smallest and tile_bytes(side, side) > available:
        side = max(smallest, side // 2 // cell * cell)
    needed = tile_bytes(min(side, x.shape[2]), min(side, x.shape[3]))
    if needed > available and run.budget is not None:
        raise MemoryBudgetError(
            f"{run.what} by tiles: expected {format_bytes(needed)} for one tile to fit, "
            f"got {format_bytes(available)} allowed: allow more memory or make the tiles smaller"
        )
    reached = 0.0
    for index in range(0, len(x), group):

        def on_tile(done: int, count: int, index: int = index) -> None:
            nonlocal reached  # an image that starts again does not take back what was reported
            reached = max(reached, (index + group * done / count) / len(x))
            run.report(reached)

        item, out = x[index : index + group], run.result(index)[: run.group_out or group]
        while True:
            shared = min(overlap, side // 4 // cell * cell)  # as ComfyUI's nodes do
            made = blend_tiles(run.attempt, item, out, tile=(side, side), overlap=shared, scale=scale, on_tile=on_tile)
            if made is not None:
                break
            if side <= smallest:
                raise MemoryBudgetError(
                    f"{run.what} by tiles: expected a tile of {side} to fit, got out of memory: free some memory"
                )
            side = max(smallest, side // 2 // cell * cell)
        run.put(index, 0, out)


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
    run: Callable[[Tensor], Tensor | None],
    x: Tensor,
    out: Tensor,
    *,
    tile: tuple[int, int],
    overlap: int,
    scale: tuple[int, int],
    on_tile: Callable[[int, int], None] | None = None,
) -> Tensor | None:
    """Run a decoder or encoder tile by tile and blend the results into `out`. Approximate.

    Args:    run: one tile (B, C, th, tw) -> (B, D, th * scale, tw * scale), or None where memory ran out.
             x: (B, C, H, W), both sides multiples of scale[1].
             out: (B, D, H * scale, W * scale), any strides, float; overwritten.
             tile, overlap: in rows and columns of x, multiples of scale[1]; overlap is less than the smaller tile side.
             scale: output over input size as a fraction, (8, 1) for an f8 decoder and (1, 8) for its encoder.
             on_tile: called with (tiles done, tiles in all) after each tile.
    Returns: `out`; None as soon as a tile has no result.
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
        piece = run(x[:, :, rows[i] : rows[i] + tile_h, columns[j] : columns[j] + tile_w])
        if piece is None:
            return None
        piece = piece.to(out.device, out.dtype)
        piece = piece * row_ramps[i].to(out)[:, None]
        piece *= column_ramps[j].to(out)
        target = out[:, :, out_rows[i] : out_rows[i] + out_tile_h, out_columns[j] : out_columns[j] + out_tile_w]
        target += piece
        if on_tile is not None:
            on_tile(done, count)
    return out
