"""How alike two images are: PSNR, SSIM and MS-SSIM, one value per image, in float64.

SSIM: Wang, Bovik, Sheikh, Simoncelli 2004 (Gaussian window of 11 x 11 pixels, deviation 1.5, K1 0.01, K2 0.03, on
every colour channel, without padding). MS-SSIM: Wang, Simoncelli, Bovik 2003. Written from the papers, whose constants
are for brightness that is never negative: images in -1..1 are judged as 0..1, black being 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

WINDOW = 11
DEVIATION = 1.5
RANGE = 2.0
"""From black (-1) to white (1), of what is handed in."""
C1, C2 = 0.01**2, 0.03**2
"""For brightness in 0..1."""
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
    error = (round_to_8_bits(x) - round_to_8_bits(y)).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(RANGE**2 / error.clamp_min(RANGE**2 * 10**-16.8))


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity, the mean over all windows and channels; it has a gradient, nothing is rounded.

    Args:    x, y: (B, 3, H, W) in -1..1, at least 11 pixels a side, any floating type.
    Returns: (B,) float64, 1 for equal images.
    Raises:  ValueError for shapes that differ, are no batch of images, or too small.
    Memory:  about ten times the two images in float64.
    """
    _check(x, y, LEAST_SIDE)
    luminance, contrast = _similarity(_brightness(x), _brightness(y))
    return (luminance * contrast).mean(dim=(1, 2, 3))


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
        luminance, contrast = _similarity(x, y)
        is_last = number == len(SCALE_WEIGHTS) - 1
        term = luminance * contrast if is_last else contrast
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


def _similarity(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Of brightness in 0..1: luminance and contrast-and-structure of every window, (B, 3, H - 10, W - 10)."""
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x = _blur(x * x) - mean_x * mean_x
    variance_y = _blur(y * y) - mean_y * mean_y
    covariance = _blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x.square() + mean_y.square() + C1)
    return luminance, (2 * covariance + C2) / (variance_x + variance_y + C2)


def _blur(x: Tensor) -> Tensor:
    """Gaussian means of all whole windows, rows first, then columns."""
    distance = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    weights = torch.exp(-0.5 * (distance / DEVIATION).square())
    weights = weights / weights.sum()
    flat = x.flatten(0, 1)[:, None]  # (B * 3, 1, H, W)
    rows = functional.conv2d(flat, weights.view(1, 1, -1, 1))
    return functional.conv2d(rows, weights.view(1, 1, 1, -1)).view(*x.shape[:2], *_shrunk(x))


def _shrunk(x: Tensor) -> tuple[int, int]:
    return x.shape[2] - WINDOW + 1, x.shape[3] - WINDOW + 1


def _check(x: Tensor, y: Tensor, least_side: int) -> None:
    if x.shape != y.shape or x.ndim != 4 or min(x.shape[2:]) < least_side:
        raise ValueError(
            f"metrics: expected two batches (B, C, H, W) of one shape, H and W at least {least_side}, "
            f"got {tuple(x.shape)} and {tuple(y.shape)}: crop them alike"
        )
