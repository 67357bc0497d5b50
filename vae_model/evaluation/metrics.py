"""How alike two images are: PSNR, SSIM and MS-SSIM, one value per image, in float64.

SSIM: Wang, Bovik, Sheikh, Simoncelli 2004 (Gaussian window of 11 x 11 pixels, standard deviation 1.5, K1 0.01, K2
0.03, on every colour channel, without padding). MS-SSIM: Wang, Simoncelli, Bovik 2003. Written from the papers, whose
constants are for brightness that is never negative: images in -1..1 are judged as 0..1, black being 0.

Why not torchmetrics: `exact-vae evaluate` runs without the packages of training, and its windows reach over padded
edges. On ten photographs of 333 x 301 pixels against JPEGs of them its SSIM (1.9.0) is off by up to 2.0e-3 from the
mean that scikit-image 0.26 has over whole windows, this one by 6e-13; MS-SSIM differs by 4e-4. PSNR agrees to 2e-6 dB.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Means = Callable[[Tensor], Tensor]
WINDOW = 11
STANDARD_DEVIATION = 1.5
RANGE = 2.0
"""From black (-1) to white (1), of what is handed in."""
MOST_DECIBELS = 168.0
"""Of images that are equal after rounding."""
K1, K2 = 0.01, 0.03
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the five scales of MS-SSIM, the finest first."""
LEAST_SIDE = WINDOW
LEAST_SIDE_MS = WINDOW * 2 ** (len(SCALE_WEIGHTS) - 1)


def round_to_8_bits(x: Tensor) -> Tensor:
    """Images in -1..1 as an 8-bit file would keep them: clamped, rounded to the nearest of 256 steps, float64."""
    return ((x.double().clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, both images rounded to 8 bits first.

    Args:    x, y: (B, 3, H, W) in -1..1, any floating type.
    Returns: (B,) float64; 168 dB stands for images that are equal after rounding.
    Raises:  ValueError for shapes that differ or are no batch of images.
    """
    _check(x, y, 1)
    return decibels(round_to_8_bits(x), round_to_8_bits(y)).clamp_max(MOST_DECIBELS)


def decibels(x: Tensor, y: Tensor, span: float = RANGE) -> Tensor:
    """The same of tensors (B, ...) as they are, nothing rounded; infinity for equal ones.

    Args:    span: from the lowest to the highest value that there may be.
    """
    return 10 * torch.log10(span**2 / (x.double() - y.double()).square().mean(dim=tuple(range(1, x.ndim))))


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity, the mean over all windows and channels; it has a gradient, nothing is rounded.

    Args:    x, y: (B, 3, H, W) in -1..1, at least 11 pixels a side, any floating type.
    Returns: (B,) float64, 1 for equal images.
    Raises:  ValueError for shapes that differ, are no batch of images, or too small.
    Memory:  about ten times the two images in float64.
    """
    _check(x, y, LEAST_SIDE)
    luminance, common, own = similarity(_brightness(x), _brightness(y), _blur, span=1)
    return (luminance * (common / own)).mean(dim=(1, 2, 3))


def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """Multi-scale structural similarity over five scales; it has a gradient, nothing is rounded.

    Per channel: the contrast terms of the four finer scales and the whole similarity of the coarsest, each averaged
    over its windows (0 where that is negative), to the power of the scale's weight, multiplied. Then the mean over the
    channels. A row or column too many for halving is left out.

    Args:    x, y: (B, 3, H, W) in -1..1, at least 176 pixels a side, any floating type.
    Returns: (B,) float64, 1 for equal images.
    Raises:  ValueError as for `ssim`.
    """
    _check(x, y, LEAST_SIDE_MS)
    x, y = _brightness(x), _brightness(y)
    result: Tensor | float = 1.0
    for number, weight in enumerate(SCALE_WEIGHTS):
        luminance, common, own = similarity(x, y, _blur, span=1)
        is_last = number == len(SCALE_WEIGHTS) - 1
        term = luminance * (common / own) if is_last else common / own
        result = result * _power(term.mean(dim=(2, 3)), weight)  # (B, 3)
        if not is_last:
            x, y = functional.avg_pool2d(x, 2), functional.avg_pool2d(y, 2)
    assert isinstance(result, Tensor)
    return result.mean(dim=1)


def _brightness(x: Tensor) -> Tensor:
    """-1..1 as 0..1, float64: the stabilising constants take means of 0 and more."""
    return (x.double() + 1) / 2


def _power(base: Tensor, exponent: float) -> Tensor:
    """0 for what is not positive, with a gradient of 0 there: a plain power has none at 0."""
    positive = base > 0
    return torch.where(positive, torch.where(positive, base, 1.0) ** exponent, 0.0)


def similarity(x: Tensor, y: Tensor, means: Means, span: float) -> tuple[Tensor, Tensor, Tensor]:
    """SSIM of every window: luminance, and numerator and denominator of contrast and structure together.

    Args:    means: of every window, weighted; images (B, C, H, W) to (B, C, h, w).
             span: from the lowest to the highest value that there may be.
    """
    c1, c2 = (K1 * span) ** 2, (K2 * span) ** 2
    mean_x, mean_y = means(x), means(y)
    variance_x = means(x * x) - mean_x.square()
    variance_y = means(y * y) - mean_y.square()
    covariance = means(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    return luminance, 2 * covariance + c2, variance_x + variance_y + c2


def _blur(x: Tensor) -> Tensor:
    """Gaussian means of all whole windows, rows first, then columns."""
    distance = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weights = torch.exp(-0.5 * (distance / STANDARD_DEVIATION).square())
    weights = weights / weights.sum()
    flat = x.flatten(0, 1)[:, None]  # (B * 3, 1, H, W)
    rows = functional.conv2d(flat, weights.view(1, 1, -1, 1))
    return functional.conv2d(rows, weights.view(1, 1, 1, -1)).squeeze(1).unflatten(0, x.shape[:2])  # (B, 3, h, w)


def _check(x: Tensor, y: Tensor, least_side: int) -> None:
    if x.shape != y.shape or x.ndim != 4 or min(x.shape[2:]) < least_side:
        raise ValueError(
            f"metrics: expected two batches (B, C, H, W) of one shape, H and W at least {least_side}, "
            f"got {tuple(x.shape)} and {tuple(y.shape)}: crop them alike"
        )
