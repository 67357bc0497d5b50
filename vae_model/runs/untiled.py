"""Running a model over a batch: chunk by chunk, or tile by tile, with out of memory handled here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import MemoryBudgetError
from ..errors.bytesize import format_bytes
from ..host import Host
from .blend import blend_tiles

Progress = Callable[[float], None]

MAX_CHUNK = 4
"""Images run together at most: larger batches are no faster and take proportionally more memory."""
SMALLEST_TILE_CELLS = 8


@dataclass(frozen=True)
class Run:
    """One call of decode or encode."""

    what: str
    model: Callable[[Tensor], Tensor]
    """(b, C, h, w) on `device` in `dtype` -> the raw result."""
    load: Callable[[int], None]
    """Puts the weights on `device` and makes room for so many bytes beside them."""
    host: Host
    device: torch.device
    dtype: torch.dtype
    limit: int | None
    """Bytes the user allows, None for what is free."""
    progress: Progress | None

    def budget(self) -> int:
        """Bytes to plan with: what the user allows, else what is free."""
        return self.host.get_free_memory(self.device) if self.limit is None else self.limit

    def attempt(self, x: Tensor) -> Tensor | None:
        """The model's result, or None where memory ran out; the failed tensors are freed before this returns."""
        self.host.check_interrupt()
        try:
            return self.model(x.to(self.device, self.dtype))
        except Exception as error:
            if not self.host.is_oom(error):
                raise
        self.host.soft_empty_cache()  # outside the except block: its traceback would keep the failed tensors alive
        return None

    def report(self, fraction: float) -> None:
        """Tell the caller how far the run is."""
        if self.progress is not None:
            self.progress(fraction)


def run_untiled(
    run: Run, x: Tensor, out: Tensor, finish: Callable[[Tensor], Tensor], bytes_per_item: int, group: int = 1
) -> None:
    """Fill `out` with finish(model(x)), as many items at once as fit. An item is one image, or `group` frames.

    MemoryBudgetError before any work where one item cannot fit: in the user's limit, or in the memory of a CPU, whose
    operating system would end the process instead of refusing.
    """
    if run.limit is not None and bytes_per_item > run.limit:
        raise _does_not_fit(run, out, bytes_per_item, run.limit)
    run.load(bytes_per_item)
    budget = run.budget()
    if bytes_per_item > budget and run.device.type == "cpu":
        raise _does_not_fit(run, out, bytes_per_item, budget)
    chunk = group * max(1, min(len(x), MAX_CHUNK // group, budget // max(1, bytes_per_item)))
    start = 0
    while start < len(x):
        result = run.attempt(x[start : start + chunk])
        if result is None:
            if chunk == group:
                raise _does_not_fit(run, out, bytes_per_item, run.host.get_free_memory(run.device))
            chunk = group
            continue
        out[start : start + chunk] = finish(result)
        del result
        start += chunk
        run.report(min(1.0, start / len(x)))


def _does_not_fit(run: Run, out: Tensor, needed: int, available: int) -> MemoryBudgetError:
    pixels = (out.shape[2], out.shape[1]) if run.what == "decode" else (out.shape[3], out.shape[2])
    unit = "pixels" if run.what == "decode" else "latent cells"
    source = "allowed" if run.limit is not None else "free"
    return MemoryBudgetError(
        f"{run.what} to {pixels[0]} x {pixels[1]} {unit}: expected {format_bytes(needed)} of activations to fit, "
        f"got {format_bytes(available)} {source}: use a smaller image, free memory, or method 'blend' (approximate)"
    )


def run_blend(
    run: Run,
    x: Tensor,
    out: Tensor,
    *,
    scale: tuple[int, int],
    tile: int | None,
    overlap: int,
    default_tile: int,
    tile_bytes: Callable[[int, int], int],
    group: int = 1,
) -> None:
    """Fill `out` by overlapping tiles (approximate); where memory runs out the image starts again with smaller tiles.

    `tile` (None: `default_tile` or less), `overlap` and `default_tile` are in rows of x, multiples of scale[1]. So many
    frames as `group` run together; `tile_bytes` counts them all.
    """
    cell = scale[1]
    side = tile or default_tile
    smallest = SMALLEST_TILE_CELLS * cell
    run.load(tile_bytes(min(side, x.shape[2]), min(side, x.shape[3])))
    budget = run.budget()
    while tile is None and side > smallest and tile_bytes(side, side) > budget:
        side = max(smallest, side // 2 // cell * cell)
    needed = tile_bytes(min(side, x.shape[2]), min(side, x.shape[3]))
    if needed > budget and run.limit is not None:
        raise MemoryBudgetError(
            f"{run.what} by tiles: expected {format_bytes(needed)} for one tile to fit, "
            f"got {format_bytes(budget)} allowed: allow more memory or make the tiles smaller"
        )
    reached = 0.0
    for index in range(0, len(x), group):

        def on_tile(done: int, count: int, index: int = index) -> None:
            nonlocal reached  # an image that starts again does not take back what was reported
            reached = max(reached, (index + group * done / count) / len(x))
            run.report(reached)

        frames = slice(index, index + group)
        while not _blend_one(run, x[frames], out[frames], side, overlap, scale, on_tile):
            if side <= smallest:
                raise MemoryBudgetError(
                    f"{run.what} by tiles: expected a tile of {side} to fit, got out of memory: free some memory"
                )
            side = max(smallest, side // 2 // cell * cell)


class _OutOfMemory(Exception):
    """A tile did not fit; never leaves this file."""


def _blend_one(
    run: Run,
    x: Tensor,
    out: Tensor,
    side: int,
    overlap: int,
    scale: tuple[int, int],
    on_tile: Callable[[int, int], None],
) -> bool:
    """One image by tiles of `side`; False where memory ran out."""
    shared = min(overlap, side // 4 // scale[1] * scale[1])  # as ComfyUI's nodes do

    def run_tile(piece: Tensor) -> Tensor:
        result = run.attempt(piece)
        if result is None:
            raise _OutOfMemory
        return result

    try:
        blend_tiles(run_tile, x, out, tile=(side, side), overlap=shared, scale=scale, on_tile=on_tile)
    except _OutOfMemory:
        return False
    return True
