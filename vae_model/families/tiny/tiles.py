"""Approximate: the tiny autoencoder in overlapping tiles, blended one after another as diffusers does it.

Its networks reach further than the usual overlap, so seams differ from the whole run; the exact engine has none.
Source: diffusers `AutoencoderTiny` (Apache-2.0; positions and ramps), re-implemented for any channels and dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor


def ramp(size: int, overlap: int) -> Tensor:
    """Weights of a tile's rows: from 0 to 1 over the overlap, then 1; (size,). One shared row is taken by halves."""
    if overlap == 0:
        return torch.ones(size)
    if overlap == 1:
        return torch.cat([torch.full((1,), 0.5), torch.ones(size - 1)])
    return (torch.arange(size) / (overlap - 1)).clamp(0, 1)


def run_in_tiles(
    run: Callable[[Tensor], Tensor], x: Tensor, *, cells: int, shared: int, before: int, after: int
) -> Tensor:
    """Run tile by tile; a later tile replaces an earlier one gradually, over the rows and columns they share.

    Args:    run: (B, C, th, tw) -> (B, D, ceil(th * after / before), ceil(tw * after / before)).
             x: (B, C, H, W), any size.
             cells: rows and columns of a tile, in latent cells; `shared` of them with the tile before it.
             before, after: pixels along a cell in x and in the result; one of them is 1.
    Returns: (B, D, ceil(H * after / before), ceil(W * after / before)), in the dtype that `run` gives.
    """
    if not 0 <= shared < cells:
        raise ValueError(f"tiles: expected more cells than shared ones, got {cells} and {shared}: enlarge them")
    if 0 in x.shape[-2:]:
        return run(x)
    stride, tile = (cells - shared) * before, cells * before
    height, width = (-(-side * after // before) for side in x.shape[-2:])
    out: Tensor | None = None
    for top, left in product(range(0, x.shape[-2], stride), range(0, x.shape[-1], stride)):
        piece = run(x[..., top : top + tile, left : left + tile])
        if out is None:
            out = piece.new_zeros(*piece.shape[:2], height, width)
        weights = ramp(cells * after, shared * after)
        weights = weights.to(piece.device, torch.promote_types(piece.dtype, torch.float32))
        rows, columns = (torch.ones_like(weights) if start == 0 else weights for start in (top, left))
        mask = (rows[:, None] * columns)[: piece.shape[-2], : piece.shape[-1]]
        y, x_ = top // before * after, left // before * after
        target = out[..., y : y + piece.shape[-2], x_ : x_ + piece.shape[-1]]
        target.copy_(mask * piece + (1 - mask) * target)
    assert out is not None
    return out
