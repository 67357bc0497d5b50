"""VQ autoencoders (VQ-f4, VQ-f8, VQGAN): latents are replaced by the nearest vectors of a codebook before decoding.

Source: CompVis latent-diffusion and taming-transformers (MIT), re-implemented with the same keys. As in the latent
diffusion models on top of them, `encode` gives what the encoder computes: the codebook belongs to decoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...exact.layer import UnsupportedModule
from ...exact.read import describe, require_plain
from ..coder import Coder
from ..family import Shapes, latent_shape, refuse
from ..hints import Hints
from ..latent_formats import Users
from ..layout import Layout
from .autoencoder import AutoencodingEngineLegacy, engine_options
from .config import KLConfig
from .family import KL, image_fields
from .names import DIFFUSERS, LDM, OLD_ATTENTION_MARKS, OLD_DIFFUSERS

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


CODEBOOK = "quantize.embedding.weight"


def _with_codebook(layout: Layout) -> Layout:
    return replace(layout, family="vq", rules=((CODEBOOK, CODEBOOK), *layout.rules), required=(CODEBOOK,))


class VQ(KL):
    """As KL, without variances, with a codebook before the decoder."""

    name = "vq"
    title = "VQ autoencoder"
    layouts: ClassVar[tuple[Layout, ...]] = (
        _with_codebook(LDM),
        replace(_with_codebook(DIFFUSERS), forbidden=OLD_ATTENTION_MARKS),
        _with_codebook(OLD_DIFFUSERS),
    )
    fixed: ClassVar[Mapping[str, tuple[str, ...]]] = {**KL.fixed, "norm_type": ("group",)}
    users: ClassVar[Mapping[tuple[int, int], tuple[Users, ...]]] = {}
    classes = KL.classes | {"AutoencoderVQ"}
    children = KL.children | {"quantize"}
    model_class = AutoencoderVQ
    regularizers = (*KL.regularizers, "IdentityRegularizer")

    def core_keys(self, layout: str) -> tuple[str, ...]:
        return (*super().core_keys(layout), CODEBOOK)

    def infer(self, shapes: Shapes, hints: Hints) -> KLConfig:
        image = super().infer(shapes, {**hints, "double_z": "False"})
        return replace(image, codebook=shapes[CODEBOOK][0], double_z=False)

    def build(self, config: Any) -> nn.Module:
        return AutoencoderVQ(**engine_options(config), codebook=config.codebook)

    def diffusers_config(self, config: KLConfig, hints: Hints) -> dict[str, Any]:
        fields = image_fields(config)
        if not (config.quant_conv and config.post_quant_conv) or not (
            config.encoder and config.encoder.attn_type != "none"
        ):
            raise refuse("a VQ model with quant convolutions and attention", "one without")
        return fields | {
            "_class_name": "VQModel",
            "num_vq_embeddings": config.codebook,
            "vq_embed_dim": config.embed_dim,
        }

    def convention(self, config: KLConfig) -> str:
        raw = f"{latent_shape(config)}, raw, before the codebook"
        return f"{raw}; decoding takes the nearest of its {config.codebook} vectors"

    def knows(self, model: Any) -> bool:
        return super().knows(model) and hasattr(model, "quantize")

    def decoder(self, model: Any) -> Coder:
        program = super().decoder(model).program
        quantize = model.quantize
        if not isinstance(quantize, VectorQuantizer) or quantize.embedding.embedding_dim != program.in_channels:
            expected = f"a codebook of {program.in_channels} channels"
            raise UnsupportedModule(f"quantize: expected {expected}, got {describe(quantize)}")
        require_plain(quantize)
        return Coder(program, prepare=quantize)  # every latent cell by itself, so that rows do as well as the whole
