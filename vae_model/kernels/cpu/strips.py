"""Norm with activation, and moments, of float32 strips on CPUs, by the kernels of strips.c in one pass each."""

from __future__ import annotations

from ctypes import CDLL, c_int, c_ssize_t, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from .compiler import load


def _dense(x: Tensor) -> bool:
    """Whether the pixels of a row stand behind each other, channels innermost."""
    channels, width = x.shape[1], x.shape[3]
    return (x.stride(1) == 1 or channels == 1) and (x.stride(3) == channels or width == 1)


def _kernels_for(x: Tensor) -> CDLL | None:
    """The kernels for a tensor (B, C, n, W); None where there are none."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or type(x) is not Tensor:  # tensors without data are others
        return None
    library = kernels()
    return library if library is not None and x.numel() and not x.shape[1] % library.strip_lanes() else None


def normalise(target: Tensor, x: Tensor, scale: Tensor, shift: Tensor, *, silu: bool) -> bool:
    """Write x * scale + shift, with SiLU behind it or not, into `target`; False where it cannot be done here.

    Args:    target, x: (B, C, n, W), channels innermost. scale, shift: (B or 1, C, 1, 1), float32.
    """
    library = _kernels_for(x)
    if library is None or target.dtype != x.dtype or scale.dtype != torch.float32:
        return False
    if not _dense(x) or not _dense(target):
        return False
    images, channels, rows, width = x.shape
    scale, shift = (values.expand(images, -1, 1, 1).contiguous() for values in (scale, shift))
    apart = (c_ssize_t * 4)(x.stride(0), x.stride(2), target.stride(0), target.stride(2))
    pointers = (values.data_ptr() for values in (x, target, scale, shift))
    library.strip_normalise(*pointers, images, rows, width, channels, apart, int(silu), torch.get_num_threads())
    return True


def channel_moments(image: Tensor) -> tuple[Tensor, Tensor] | None:
    """Mean and biased variance of the channels of (1, C, n, W): two (1, C), float64; None where it cannot be done here.

    Those of 64 pixels are taken in float32, from their own mean, and merged in float64.
    """
    library = _kernels_for(image)
    if library is None or not image.is_contiguous(memory_format=torch.channels_last):
        return None
    _, channels, rows, width = image.shape
    parts = torch.get_num_threads()
    moments = torch.empty(parts, 2, channels, dtype=torch.float64)
    library.strip_moments(image.data_ptr(), moments.data_ptr(), rows * width, channels, parts)
    return moments[0, :1], moments[0, 1:] / (rows * width)


@cache
def kernels() -> CDLL | None:
    """The functions of strips.c, or None."""
    return load(Path(__file__).with_name("strips.c"), _declare, _is_right)


def _declare(library: CDLL) -> None:
    library.strip_normalise.argtypes = [*([c_void_p] * 4), *([c_int] * 4), c_void_p, c_int, c_int]
    library.strip_normalise.restype = None
    library.strip_moments.argtypes = [c_void_p, c_void_p, c_int, c_int, c_int]
    library.strip_moments.restype = None


@torch.no_grad()
def _is_right(library: CDLL) -> bool:
    """SiLU over all of its range, and the moments of these values."""
    channels, pixels = library.strip_lanes(), 200
    x = torch.linspace(-100, 100, pixels * channels).view(pixels, channels)
    result, scale, shift = torch.full_like(x, torch.nan), torch.ones(channels), torch.zeros(channels)
    pointers = (values.data_ptr() for values in (x, result, scale, shift))
    library.strip_normalise(*pointers, 1, 1, pixels, channels, (c_ssize_t * 4)(), 1, 1)
    moments = torch.full((3, 2, channels), torch.nan, dtype=torch.float64)
    library.strip_moments(x.data_ptr(), moments.data_ptr(), pixels, channels, len(moments))
    variance, mean = torch.var_mean(x.double(), dim=0, correction=0)
    right = ((result - functional.silu(x.double())).abs() <= 1e-6 * x.abs() + 1e-30).all()
    right &= torch.allclose(moments[0], torch.stack([mean, variance * pixels]), rtol=1e-6, atol=1e-5)
    return bool(right)
