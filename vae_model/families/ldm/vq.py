"""VQ autoencoders (VQ-f4, VQ-f8, VQGAN): latents are replaced by the nearest vectors of a codebook before decoding.

Source: CompVis latent-diffusion and taming-transformers (MIT), re-implemented with the same keys. As in the latent
diffusion models on top of them, `encode` gives what the encoder computes: the codebook belongs to decoding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .autoencoder import AutoencodingEngineLegacy, engine_options
from .config import KLConfig

_CHUNK = 2**18
"""Distances computed at once."""


class VectorQuantizer(nn.Module):
    """A codebook (n, C) under the key `embedding.weight`."""

    def __init__(self, entries: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(entries, channels)

    def forward(self, z: Tensor) -> Tensor:
        """(B, C, h, w) -> the nearest vectors, same shape and dtype; of equally near ones the first."""
        # In the widest format: which vector is nearest must not depend on how many cells are compared at once.
        wide = torch.float32 if z.device.type == "mps" else torch.float64
        codebook = self.embedding.weight.to(z.device)
        vectors = codebook.to(wide)
        squares = vectors.square().sum(1)
        cells = z.movedim(1, -1).reshape(-1, z.shape[1])  # (B*h*w, C)
        nearest = [
            (squares - 2 * some.to(wide) @ vectors.t()).argmin(1)
            for some in cells.split(max(1, _CHUNK // len(codebook)))
        ]
        chosen = codebook.to(z.dtype)[torch.cat(nearest)]
        return chosen.reshape(z.shape[0], *z.shape[2:], z.shape[1]).movedim(-1, 1)  # (B, C, h, w)


class AutoencoderVQ(AutoencodingEngineLegacy):
    """An engine with a codebook of `codebook` vectors of `embed_dim` numbers; `encode` does not use it."""

    def __init__(self, embed_dim: int, *, codebook: int, **options: Any) -> None:
        super().__init__(embed_dim, regularizer_config={"target": "IdentityRegularizer"}, **options)
        self.quantize = VectorQuantizer(codebook, embed_dim)

    def decode(self, z: Tensor, *, force_not_quantize: bool = False, **kwargs: Any) -> Tensor:
        """Latents (B, embed_dim, h, w), replaced by the codebook's unless told otherwise, to raw images."""
        return super().decode(z if force_not_quantize else self.quantize(z), **kwargs)


def build_vq(config: KLConfig) -> AutoencoderVQ:
    """The model that `config` describes, randomly initialised."""
    return AutoencoderVQ(**engine_options(config), codebook=config.codebook)
