"""Masks for inpainting, as ComfyUI's own node treats them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..vae_model.runs.checks import crop_centre

GREY = 0.5


def grey_out(pixels: Tensor, mask: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Images (B, H, W, C) with the masked places grey, alpha as it is, and the mask (M, 1, H, W) as it lies on them.

    The mask, (M, H, W) or (H, W) of any size, is stretched over the images; both are cropped centrally to multiples of
    `factor`. A place counts as masked from 0.5 on.
    """
    height, width = pixels.shape[1:3]
    mask = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    mask = functional.interpolate(mask, size=(height, width), mode="bilinear")
    mask = crop_centre(mask.movedim(1, -1), factor).movedim(-1, 1)
    pixels = crop_centre(pixels, factor)
    keep = (1.0 - mask.round()).movedim(1, -1).to(pixels)  # (M, H, W, 1)
    colours, alpha = pixels[..., :3], pixels[..., 3:]
    grey = (colours - GREY) * keep + GREY
    return (torch.cat([grey, alpha.expand(len(grey), -1, -1, -1)], dim=-1) if alpha.numel() else grey), mask


def grow_mask(mask: Tensor, pixels: int) -> Tensor:
    """A mask (M, 1, H, W), rounded, grown by a square of `pixels` on a side."""
    mask = mask.round()
    if pixels < 2:
        return mask
    grown = functional.max_pool2d(mask, pixels, stride=1, padding=pixels // 2)
    return torch.clamp(grown[..., : mask.shape[2], : mask.shape[3]], 0.0, 1.0)
