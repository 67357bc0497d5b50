"""Photographs as trainings and judgements take them: 8-bit tensors, and the middles of these."""

from __future__ import annotations

import os

import torch
from torch import Tensor
from torch.nn import functional

from ..files.images import read_image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")


def read_photo(path: str | os.PathLike[str], channels: int = 3) -> Tensor:
    """A picture of any mode, upright, as (channels, H, W) uint8; ValueError where it cannot be read."""
    pixels = read_image(path, channels)[0][0]  # (H, W, channels)
    return (pixels * 255).round().to(torch.uint8).permute(2, 0, 1).contiguous()


def middle(photo: Tensor, size: int, multiple: int = 32) -> Tensor:
    """The middle of a (C, H, W) uint8 picture in -1..1: (C, h, w), sides up to `size`, multiples of `multiple`.

    A side below `multiple` is enlarged to it first.
    """
    height, width = photo.shape[1:]
    if min(height, width) < multiple:
        scale = multiple / min(height, width)
        larger = (max(multiple, round(height * scale)), max(multiple, round(width * scale)))
        photo = functional.interpolate(photo[None].float(), size=larger, mode="bilinear")[0]
        height, width = larger
    h, w = (min(max(size, multiple), side) // multiple * multiple for side in (height, width))
    top, left = (height - h) // 2, (width - w) // 2
    return photo[:, top : top + h, left : left + w].float() / 127.5 - 1
