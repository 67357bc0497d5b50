"""What every family's model computes at its edges: raw latents to raw images, and images in -1..1 to raw latents."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from .ldm.flux2 import AutoencoderFlux2
from .tiny.model import AutoencoderTiny
from .wan.model import WanVAE


def decode_raw(model: nn.Module, z: Tensor, timesteps: int | None = None) -> Tensor:
    """(B, c, h, w) -> (B, C, h * f, w * f), about -1..1. `timesteps`: frames of a temporal decoder's group."""
    known: Any = model
    if isinstance(model, AutoencoderTiny):
        cells = functional.pixel_shuffle(z, model.latent_patch)
        return known.decode((cells - known.shift_factor) * known.scaling_factor)[0]
    return known.decode(z) if timesteps is None else known.decode(z, timesteps=timesteps)


def encode_raw(model: nn.Module, x: Tensor, latent_channels: int) -> Tensor:
    """(B, C, H, W) -> (B, c, H // f, W // f), the mean of the posterior."""
    known: Any = model
    if isinstance(model, AutoencoderTiny):
        cells = known.encode(x)[0] / known.scaling_factor + known.shift_factor
        return functional.pixel_unshuffle(cells, model.latent_patch)
    if isinstance(model, WanVAE):
        return model.encode(x)
    moments, _ = known.encode(x, unregularized=True)
    if isinstance(model, AutoencoderFlux2):
        return model.pack(moments[:, : known.embed_dim])
    return moments[:, :latent_channels]  # the mean; without a log-variance it is all there is
