"""The families that there are: FAMILIES, and to which of them a model belongs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..exact.layer import UnsupportedModule
from ..exact.read import describe
from .coder import Coder
from .dc_ae.family import DCAE
from .family import Family
from .hunyuan_image.family import HunyuanImage
from .layout import Layout
from .ldm.family import KL
from .ldm.flux2 import Flux2
from .ldm.vq import VQ
from .qwen_image_21.family import QwenImage21
from .taehv.family import TinyVideo
from .tiny.family import Tiny
from .video.family import Video
from .wan.family import Wan
from .wan22 import Wan22

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        KL(),
        Video(),
        Flux2(),
        VQ(),
        Wan(),
        Wan22(),
        QwenImage21(),
        HunyuanImage(),
        DCAE(),
        Tiny(),
        TinyVideo(),
    )
}
"""By name. A model is of the last of them that it can belong to: later ones are more special."""


def all_layouts() -> tuple[Layout, ...]:
    """Of all families."""
    return tuple(layout for family in FAMILIES.values() for layout in family.layouts)


def family_of(model: nn.Module) -> Family:
    """Of a model of ours; for what is none, the usual one, by whose names it is then judged."""
    return next((family for family in reversed(FAMILIES.values()) if family.owns(model)), FAMILIES["kl"])


def family_knowing(model: Any) -> Family | None:
    """Which reads a model, ours or the host's; None where none does."""
    return next((family for family in reversed(FAMILIES.values()) if family.knows(model)), None)


def decoder_of(model: Any) -> Coder:
    """The decoder of a model, ours or the host's; UnsupportedModule where the engine has no rule for it."""
    return _require_family(model).decoder(model)


def encoder_of(model: Any, latent_channels: int) -> Coder:
    """The encoder, to the mean of the posterior; UnsupportedModule as for the decoder."""
    return _require_family(model).encoder(model, latent_channels)


def _require_family(model: Any) -> Family:
    family = family_knowing(model)
    if family is None:
        raise UnsupportedModule(f"{describe(model)}: expected an autoencoder of one of the families known here")
    return family


def decode_raw(model: nn.Module, z: Tensor, timesteps: int | None = None) -> Tensor:
    """Untiled, a model of ours: (B, c, h, w) -> (B, C, h * f, w * f), about -1..1.

    `timesteps`: images that are the frames of one clip. Of a family with frames more may come out than go in.
    """
    family = family_of(model)
    if family.has_frames and timesteps is not None:
        return _frames(family.decode(model, _clips(z, timesteps)))
    return family.decode(model, z, timesteps)


def encode_raw(model: nn.Module, x: Tensor, latent_channels: int, timesteps: int | None = None) -> Tensor:
    """Untiled: (B, C, H, W) in -1..1 -> (B, c, H // f, W // f), the mean of the posterior; `timesteps` as above."""
    family = family_of(model)
    if family.has_frames and timesteps is not None:
        return _frames(family.encode(model, _clips(x, timesteps), latent_channels))
    return family.encode(model, x, latent_channels)


def _clips(images: Tensor, frames: int) -> Tensor:
    """(B * frames, C, H, W) -> (B, C, frames, H, W)."""
    return images.unflatten(0, (-1, frames)).transpose(1, 2)


def _frames(clips: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B * T, C, H, W)."""
    return clips.transpose(1, 2).flatten(0, 1)
