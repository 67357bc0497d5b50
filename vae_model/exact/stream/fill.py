"""What is written into the window of a convolution: rows as they are, or through a norm and an activation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from ...kernels.cpu import strips as cpu_strips
from ...kernels.cuda import strips as cuda_strips
from ..layer import Norm, PixelNorm
from .context import Context, Fill
from .moments import Moments
from .pixel_fill import PixelFill

ACTIVATE: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": lambda x: functional.silu(x, inplace=True),
    "relu": torch.relu_,
    "leaky_relu": lambda x: functional.leaky_relu_(x, 0.2),
    "gelu": lambda x: x.copy_(functional.gelu(x)),
    "mish": lambda x: functional.mish(x, inplace=True),
    "tanh": torch.tanh_,
}
"""In place, on a tensor that nobody else holds."""


def copy_in(target: Tensor, x: Tensor) -> None:
    """Nothing stands before the convolution."""
    target.copy_(x)


def norm_fill(context: Context, norm: Norm, moments: Moments, activation: str | None) -> Fill:
    """Norm with the given moments, then the activation, written straight into the window."""
    assert moments.mean is not None
    weight, bias = context.norm_weights(norm)
    scale, shift = moments.scale_shift(weight, bias, norm.eps)
    scale, shift = (values.expand(context.batch, -1, 1, 1).contiguous() for values in (scale, shift))

    def fill(target: Tensor, x: Tensor) -> None:
        for normalise in (cuda_strips.normalise, cpu_strips.normalise) if activation in (None, "silu") else ():
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
