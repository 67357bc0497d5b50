"""The models that an imitated VAE holds: ldm trees of the package's own layers, and models the engine does not know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .tiny import TinyModel

KINDS = ("kl", "kl_quant", "taesd", "taesd_classes", "taef2", "pixel_space", "video", "self_tiling")
"""kl as in SD3 and Flux, kl_quant with the 1x1 convolutions of SD, the others as their names say."""


def build(kind: str, ops: Any, *, seed: int = 0, cast: bool = False, patched: bool = False) -> nn.Module:
    """A random small model whose layers are the host's.

    Args:    cast: every layer casts its weights, as after offloading.
             patched: the stored weights are half of the real ones and a function doubles them, as a patch that is
             applied while a layer runs. Whoever reads `layer.weight` gets another image.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _MAKE[kind]()
    return use_host_layers(model.eval().requires_grad_(False), ops, cast=cast, patched=patched)


def use_host_layers(model: nn.Module, ops: Any, *, cast: bool = False, patched: bool = False) -> nn.Module:
    """Turn every convolution and norm of `model` into the host's class, in place."""
    from exact_vae.vae_model.group_norm import GroupNorm

    classes = {nn.Conv2d: "Conv2d", nn.Conv3d: "Conv3d", nn.GroupNorm: "GroupNorm", GroupNorm: "GroupNorm"}
    for name, layer in model.named_modules():
        if type(layer) not in classes:
            continue
        layer.__class__ = getattr(ops.disable_weight_init, classes[type(layer)])
        host_layer: Any = layer
        host_layer.stub_name = name
        host_layer.comfy_cast_weights = cast
        if patched:
            host_layer.weight.data.div_(2)
            host_layer.weight_function = [_double]
            if host_layer.bias is not None:
                host_layer.bias.data.div_(2)
                host_layer.bias_function = [_double]
    return model


def _double(weight: Tensor) -> Tensor:
    return weight * 2


def _kl(quant: bool) -> nn.Module:
    from exact_vae.vae_model.families.ldm.autoencoder import build_kl
    from exact_vae.vae_model.families.ldm.config import KLConfig, LevelsConfig

    levels = LevelsConfig(ch=32, widths=(32, 64, 64, 64), num_res_blocks=1)
    model = build_kl(KLConfig(4, 4, levels, levels, num_groups=8, quant_conv=quant, post_quant_conv=quant))
    model.decoder.conv_out.bias.data.mul_(0.1)
    return model


class PixelSpace(nn.Module):
    """No autoencoder at all: pixels are the latent."""

    def __init__(self) -> None:
        super().__init__()
        self.pixel_space_vae = nn.Parameter(torch.tensor(1.0))

    def decode(self, z: Tensor) -> Tensor:
        return z

    def encode(self, x: Tensor) -> Tensor:
        return x


class VideoModel(nn.Module):
    """A stand-in for a 3-D autoencoder: 8 pixels a side and 4 frames a latent cell, the first frame on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv3d(3, 16, kernel_size=1)
        self.decoder = nn.Conv3d(16, 3, kernel_size=1)

    def decode(self, z: Tensor) -> Tensor:
        x = self.decoder(z).repeat_interleave(8, dim=-1).repeat_interleave(8, dim=-2)
        return x.repeat_interleave(4, dim=2)[:, :, 3:]

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(nn.functional.avg_pool3d(x, (1, 8, 8)))[:, :, ::4]


class SelfTiling(nn.Module):
    """A model that cuts its own tiles, as newer hosts allow."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = _kl(quant=False)
        self.calls: list[str] = []

    def decode(self, z: Tensor) -> Tensor:
        return self.inner.decode(z)

    def encode(self, x: Tensor) -> Tensor:
        return self.inner.encode(x)

    def decode_tiled(self, z: Tensor, **_: Any) -> Tensor:
        self.calls.append("decode_tiled")
        return self.inner.decode(z)

    def encode_tiled(self, x: Tensor, **_: Any) -> Tensor:
        self.calls.append("encode_tiled")
        return self.inner.encode(x)


_MAKE = {
    "kl": lambda: _kl(quant=False),
    "kl_quant": lambda: _kl(quant=True),
    "taesd": TinyModel,
    "taesd_classes": lambda: TinyModel(classes=True),
    "taef2": lambda: TinyModel(packed=True),
    "pixel_space": PixelSpace,
    "video": VideoModel,
    "self_tiling": SelfTiling,
}
