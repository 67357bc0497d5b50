"""Photographs for judging: whole folders in memory as 8-bit tensors, and their centre crops."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..files.images import read_image

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"}


def read_photos(folder: Path) -> list[Tensor]:
    """Every picture of a folder, sorted by name, as (3, H, W) uint8. ValueError where there is none."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not paths:
        raise ValueError(
            f"photos: expected a folder of pictures, got {folder}: name one that holds JPEG, PNG, WebP or TIFF"
        )
    return [(read_image(path)[0][0] * 255).round().to(torch.uint8).permute(2, 0, 1).contiguous() for path in paths]


def centre_crop(photo: Tensor, size: int) -> Tensor:
    """The middle of a (3, H, W) uint8 photograph: (1, 3, h, w) in -1..1, sides up to `size`, multiples of 32."""
    height, width = photo.shape[1:]
    h, w = (min(size, side // 32 * 32) for side in (height, width))
    top, left = (height - h) // 2, (width - w) // 2
    return photo[None, :, top : top + h, left : left + w].float() / 127.5 - 1


def psnr(x: Tensor, y: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two images in -1..1, both clamped and rounded to 8 bits first."""
    a, b = (((image.clamp(-1, 1) + 1) * 127.5).round().double() for image in (x, y))
    return float(10 * torch.log10(255.0**2 / (a - b).square().mean().clamp_min(1e-12)))
