"""The Flux.2 autoencoder: a KL autoencoder whose latents are 2x2 squares in channels, normalised by stored statistics.

Source: black-forest-labs flux2 `src/flux2/autoencoder.py` and diffusers `AutoencoderKLFlux2` (Apache-2.0), read as
facts. In diffusers squares and statistics are the pipeline's; here, as in ComfyUI, they are the autoencoder's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .autoencoder import AutoencoderKL, RegLog, engine_options
from .config import KLConfig

PATCH = 2
"""Side of the squares."""


def latent_scale_shift(bn: Any, eps: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Deviation and mean of a BatchNorm's stored statistics, (C, 1, 1) each, on the device of `like` and as precise."""
    mean, variance = (stored.to(like)[:, None, None] for stored in (bn.running_mean, bn.running_var))
    return torch.sqrt(variance + eps), mean


class AutoencoderFlux2(AutoencoderKL):
    """AutoencoderKL with `bn`: latents (B, 4 * embed_dim, h, w), normalised, of 2 * f pixels a cell.

    Channel 4 * c + 2 * y + x holds channel c of cell (y, x) of a square. `bn` always uses its stored statistics.
    """

    def __init__(self, embed_dim: int, *, batch_norm_eps: float = KLConfig.batch_norm_eps, **options: Any) -> None:
        super().__init__(embed_dim, **options)
        self.bn = nn.BatchNorm2d(PATCH**2 * embed_dim, eps=batch_norm_eps, affine=False)

    def pack(self, z: Tensor) -> Tensor:
        """(B, c, h, w) -> normalised (B, 4c, h // 2, w // 2)."""
        height, width = (side // PATCH * PATCH for side in z.shape[2:])
        packed = functional.pixel_unshuffle(z[:, :, :height, :width], PATCH)
        deviation, mean = latent_scale_shift(self.bn, self.bn.eps, packed)
        return (packed - mean) / deviation

    def unpack(self, z: Tensor) -> Tensor:
        """The inverse: (B, 4c, h, w) -> (B, c, 2h, 2w)."""
        deviation, mean = latent_scale_shift(self.bn, self.bn.eps, z)
        return functional.pixel_shuffle(z * deviation + mean, PATCH)

    def encode(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Tensor, return_reg_log: bool = False, unregularized: bool = False
    ) -> Tensor | tuple[Tensor, RegLog]:
        """As AutoencoderKL's, latents packed and normalised; the moments of `unregularized` are neither."""
        if unregularized:
            return super().encode(x, unregularized=True)
        z, log = super().encode(x, True)
        return (self.pack(z), log) if return_reg_log else self.pack(z)

    def decode(self, z: Tensor, **kwargs: Any) -> Tensor:
        """Latents (B, 4 * embed_dim, h, w) to raw images (B, C, h * 2f, w * 2f)."""
        return super().decode(self.unpack(z), **kwargs)


def build_flux2(config: KLConfig, *, sample_posterior: bool = False) -> AutoencoderFlux2:
    """The model that `config` describes, randomly initialised."""
    return AutoencoderFlux2(
        **engine_options(config), batch_norm_eps=config.batch_norm_eps, sample_posterior=sample_posterior
    )
