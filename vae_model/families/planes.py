"""What goes into a network, checked where people call it: its axes and channels, from the shape alone."""

from __future__ import annotations

from collections.abc import Iterable
from math import gcd
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError


def require_planes(x: Any, channels: int, owner: str) -> None:
    """InputError for anything but a tensor (B, channels, H, W) of floats. Nothing is computed; traces do not see it."""
    if not isinstance(x, Tensor):
        found = "nothing" if x is None else type(x).__name__
        raise InputError(f"{owner}: expected a tensor (B, {channels}, H, W), got {found}: pass one")
    if not x.is_floating_point():
        way = "bytes of an image become such by x / 127.5 - 1" if x.dtype == torch.uint8 else "convert it"
        raise InputError(f"{owner}: expected floats (B, {channels}, H, W), got {x.dtype}: {way}")
    if _is_tracing() or (x.ndim == 4 and x.shape[1] == channels):
        return
    way = "use the network that belongs to it"
    if x.ndim == 4 and x.shape[-1] == channels != x.shape[-2]:  # where both are, these are more likely the sides
        way = "put the channels second, by movedim(-1, 1)"
    elif x.ndim == 3 and x.shape[0] == channels:
        way = "add a batch axis, by x[None]"
    raise InputError(f"{owner}: expected (B, {channels}, H, W), got {tuple(x.shape)}: {way}")


def require_sides(x: Tensor, least: int, owner: str) -> None:
    """InputError for planes (B, C, H, W) lower or narrower than `least`. Traces, exports and compilers do not see it:
    their sides are of any size, and a look at them would make a condition of the program."""
    if torch.compiler.is_compiling() or not all(type(side) is int for side in x.shape[2:]):
        return
    height, width = x.shape[2:]
    if min(height, width) < least:
        raise InputError(f"{owner}: expected sides of at least {least}, got {width} x {height}: enlarge the image")


def require_moments(parameters: Any) -> None:
    """InputError for anything but moments (B, 2C, ...)."""
    if not isinstance(parameters, Tensor) or parameters.ndim < 2:
        found = tuple(parameters.shape) if isinstance(parameters, Tensor) else type(parameters).__name__
        raise InputError(f"posterior: expected moments (B, 2C, ...), got {found}: pass what the encoder returns")
    if not _is_tracing() and parameters.shape[1] % 2:
        raise InputError(
            f"posterior: expected moments (B, 2C, ...), mean and log-variance, got {parameters.shape[1]} channels: "
            "build the encoder with double_z=True"
        )


def _is_tracing() -> bool:
    """A trace takes sizes for tensors, which are not to be compared."""
    return torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def require_groups(owner: str, ch: int, widths: Iterable[int], num_groups: int) -> None:
    """InputError for widths that the norms' groups do not divide."""
    all_widths = [ch, *widths]
    if num_groups < 1 or any(width < 1 or width % num_groups for width in all_widths):
        listed = ", ".join(map(str, dict.fromkeys(all_widths)))
        fits = gcd(*all_widths, 32) if min(all_widths) > 0 else 1
        raise InputError(
            f"{owner}: expected ch and ch * ch_mult to be multiples of {num_groups}, the groups of its norms, got "
            f"{listed}: take such a ch, or say num_groups={fits} beside it"
        )
