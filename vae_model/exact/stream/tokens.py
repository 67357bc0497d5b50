"""What attention of every kind does with the strips of a plane: positions as tokens."""

from __future__ import annotations

from torch import Tensor

from ...kernels.profile import profile_of
from .context import Context, Fill
from .plane import Plane


def strip_bounds(plane: Plane) -> list[tuple[int, int]]:
    """First and last but one row of every strip."""
    height = plane.size.height
    return [(top, min(height, top + plane.strip_rows)) for top in range(0, height, plane.strip_rows)]


def normalised(context: Context, fill: Fill, x: Tensor) -> Tensor:
    """norm(x) as tokens: (B, C, rows, W) -> (B, rows * W, C)."""
    target = context.empty(*x.shape)
    fill(target, x)
    return target.permute(0, 2, 3, 1).flatten(1, 2)


def attend(context: Context, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q (B, n, C), k and v (B, N, C) -> (B, n, C); with scores in slices where no kernel keeps them to itself."""
    if context.fused_attention(q.shape[2]):
        return context.attend(q, k, v)
    return context.attend(q, k, v, max_bytes=profile_of(context.device.type).slice_bytes)
