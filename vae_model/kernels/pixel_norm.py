"""Every pixel to one length: the norm that needs nothing of other pixels, written part by part."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from .profile import profile_of

SHORTEST = 1e-12
"""Pixels shorter than this are divided by it."""


def inverse_length(x: Tensor) -> Tensor:
    """sqrt(C) / |x| of every pixel of (B, C, H, W): (B, 1, H, W), in x's dtype, which should be float32 or better."""
    lengths = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    lengths = lengths.clamp(min=SHORTEST)
    return x.shape[1] ** 0.5 / lengths


def pixel_parts(x: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of the same rows and columns of equally large tensors, of a bounded size, that cover them all."""
    most = profile_of(x.device.type).part_elements
    pixels = max(1, most // max(1, x.shape[0] * x.shape[1]))
    rows = max(1, pixels // max(1, x.shape[3]))
    for part in zip(*(tensor.split(rows, 2) for tensor in (x, *others)), strict=True):
        yield from zip(*(tensor.split(pixels, 3) for tensor in part), strict=True)


def part_bytes(elements: int, channels: int, dtype: torch.dtype, device_type: str) -> int:
    """Bytes beside source and result while `normalise_into` runs over so many elements, at most."""
    wide = torch.promote_types(dtype, torch.float32)
    part = min(elements, profile_of(device_type).part_elements)
    return (part * (wide != dtype) + 2 * -(-part // channels)) * wide.itemsize


def normalise_into(target: Tensor, x: Tensor, gamma: Tensor, *, silu: bool = False) -> None:
    """Every pixel to length sqrt(C) times `gamma` (C, 1, 1), then SiLU if asked for; rounded once.

    `target` is no part of x, and has its shape and dtype.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    gamma = gamma.to(wide)
    for out, part in pixel_parts(target, x):
        values = part.to(wide)
        scale = inverse_length(values)
        values = torch.mul(values, scale, out=out) if values is part else values.mul_(scale)
        values.mul_(gamma)
        if silu:
            functional.silu(values, inplace=True)
        if values is not out:
            out.copy_(values)
        del values, scale  # else they live on beside the next part's
