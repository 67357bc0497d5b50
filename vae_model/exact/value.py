"""Activations on their way through a program: stored in a plane, or computed whenever they are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from .computed import ACTIVATE
from .context import Context
from .cuda import strips as cuda_strips
from .moments import Moments
from .native import strips as native_strips
from .pixel_norm import PixelFill
from .plane import Plane
from .rows import PlaneRows, Rows
from .spec import Norm, PixelNorm
from .step import Size
from .windowed import Fill


class Readable(Protocol):
    """How to read an activation: (top, bottom, last) -> rows; `last` frees what was stored of it behind the reader."""

    def __call__(self, top: int, bottom: int, last: bool) -> Rows: ...


@dataclass
class Value:
    """An activation: stored in a plane or computed whenever it is read; with the moments that the next norm needs."""

    size: Size
    rows: Readable
    moments: Moments | None = None
    plane: Plane | None = None

    def last(self, top: int, bottom: int) -> Rows:
        """Read it for the last time."""
        return self.rows(top, bottom, True)

    def again(self, top: int, bottom: int) -> Rows:
        """Read it and keep it."""
        return self.rows(top, bottom, False)


def norm_fill(context: Context, norm: Norm, moments: Moments, activation: str | None) -> Fill:
    """Norm with the given moments, then the activation, written straight into the window."""
    assert moments.mean is not None
    weight, bias = context.norm_weights(norm)
    scale, shift = moments.scale_shift(weight, bias, norm.eps)
    if scale.device.type == "cuda":  # one set for all images is written out
        scale, shift = (values.expand(context.batch, -1, 1, 1).contiguous() for values in (scale, shift))

    def fill(target: Tensor, x: Tensor) -> None:
        for normalise in (cuda_strips.normalise, native_strips.normalise) if activation in (None, "silu") else ():
            if normalise(target, x, scale, shift, silu=activation == "silu"):
                return
        torch.addcmul(shift, x, scale, out=target)
        if activation is not None:
            ACTIVATE[activation](target)

    return fill


def fill_maker(
    context: Context, norm: Norm | PixelNorm, moments: Moments | None, activation: str | None
) -> Callable[[], Fill]:
    """What makes the fill of a norm, `moments` (None where it needs none) being complete by then."""
    if isinstance(norm, PixelNorm):
        return PixelFill(context, norm, activation)
    assert moments is not None
    return partial(norm_fill, context, norm, moments, activation)


def stored(plane: Plane) -> Value:
    """What a plane holds."""

    def read(top: int, bottom: int, last: bool) -> Rows:
        return PlaneRows(plane, top, bottom, consume=last)

    return Value(plane.size, read, plane=plane)
