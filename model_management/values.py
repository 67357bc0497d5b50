"""What travels along a workflow's wires, unpacked: LATENT dictionaries and IMAGE batches."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def take_samples(samples: dict[str, Any]) -> Tensor:
    """The latent tensor of a LATENT; of a nested one the first."""
    latent = samples["samples"]
    return latent.unbind()[0] if getattr(latent, "is_nested", False) else latent


def flatten_frames(images: Tensor) -> Tensor:
    """Video frames (B, T, H, W, C) as a batch of images (B * T, H, W, C); images as they are."""
    return images.reshape(-1, *images.shape[-3:]) if images.ndim == 5 else images
