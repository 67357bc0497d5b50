"""Likeness terms of the loss, by name: differences of pixels, of colours, of gradients, of structure, of LPIPS.

Every term takes (x, y), each (B, C, H, W) in -1..1 in float32, and returns one number per image, (B,), that is 0 where
both are equal. Those made of pixels are means; `likeness` multiplies by the number of values where sums are asked for.
Weight-free perceptual substitutes: `gradient` and `structure`. `lpips` needs its package and the weights of its
backbone on this machine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..errors.listed import first_line
from ..evaluation.learned import lpips_network
from ..evaluation.metrics import similarity
from .config import ConfigError

Term = Callable[[Tensor, Tensor], Tensor]

OPPONENT = functional.normalize(torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]]), dim=1)
"""Brightness and two colour differences, orthonormal. The absolute error is taken there: taken on red, green and blue,
a brightness error common to the three decides the sign of all their gradients, whatever the colour error is."""

_CHARBONNIER_EPS = 1e-3
_STRUCTURE_SCALES = 3


def _mean(values: Tensor) -> Tensor:
    return values.flatten(1).mean(dim=1)


def l1(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference."""
    return _mean((y - x).abs())


def mse(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared difference."""
    return _mean((y - x).square())


def charbonnier(x: Tensor, y: Tensor) -> Tensor:
    """sqrt(d^2 + 1e-6) - 1e-3: the absolute difference, round at its foot."""
    return _mean(((y - x).square() + _CHARBONNIER_EPS**2).sqrt() - _CHARBONNIER_EPS)


def opponent(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference of brightness and of two colour differences; images of three channels only."""
    return _mean(torch.einsum("oc,bchw->bohw", OPPONENT.to(x), y - x).abs())


def gradient(x: Tensor, y: Tensor) -> Tensor:
    """Absolute difference of neighbouring pixels' differences, mean over up to four scales, each half the last."""
    error, scales = y - x, []
    while len(scales) < 4 and min(error.shape[-2:]) >= 2:
        down, right = error.diff(dim=-2).abs(), error.diff(dim=-1).abs()
        scales.append(_mean(down) + _mean(right))
        error = functional.avg_pool2d(error, 2)
    return torch.stack(scales).mean(dim=0) if scales else _mean(error.abs())


def structure(x: Tensor, y: Tensor) -> Tensor:
    """1 - SSIM of 8-pixel squares, mean over up to three scales, each half the last."""
    scales: list[Tensor] = []
    while len(scales) < _STRUCTURE_SCALES and min(x.shape[-2:]) >= 8:
        luminance, common, own = similarity(x, y, _squares, span=2)
        scales.append(1 - _mean(luminance * common / own))
        x, y = functional.avg_pool2d(x, 2), functional.avg_pool2d(y, 2)
    return torch.stack(scales).mean(dim=0) if scales else mse(x, y)


def _squares(x: Tensor) -> Tensor:
    """Means of squares of 8 pixels, four pixels apart."""
    return functional.avg_pool2d(x, kernel_size=8, stride=4)


def lpips_distance(x: Tensor, y: Tensor) -> Tensor:
    """By the network of the package `lpips`, on the device of the images."""
    return load_lpips().to(x.device)(x, y).flatten()


@cache
def load_lpips() -> Any:
    """The LPIPS network; ConfigError where the package or the weights of its backbone are missing."""
    try:
        import lpips  # pyright: ignore[reportMissingImports]

        return lpips_network(lpips, "vgg")
    except Exception as error:  # the package's own imports and downloads fail in many ways
        raise ConfigError(
            f"lpips: expected the package lpips and its VGG weights, got {first_line(error)}: "
            "use gradient and structure instead"
        ) from error


TERMS: dict[str, Term] = {
    "l1": l1,
    "mse": mse,
    "charbonnier": charbonnier,
    "opponent": opponent,
    "gradient": gradient,
    "structure": structure,
    "lpips": lpips_distance,
}
"""What a configuration may name. Whoever wants another one adds it here under a name of their own."""
