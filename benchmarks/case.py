"""What is timed: the KL-f8 autoencoder at full width with random weights, and an input of one size.

Random weights cost the same as trained ones and need no download. Norms and biases are random, too, or a mistake in
them would not show. Inputs carry gradients and outliers: wrong statistics hide in white noise.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from exact_vae.vae_model.families.ldm.autoencoder import AutoencoderKL, build_kl
from exact_vae.vae_model.families.ldm.config import KLConfig, LevelsConfig
from torch import Tensor, nn

LEVELS = LevelsConfig(ch=128, widths=(128, 256, 512, 512), num_res_blocks=2)
CONFIG = KLConfig(z_channels=4, embed_dim=4, encoder=LEVELS, decoder=LEVELS, num_groups=32)
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
DIRECTIONS = ("decode", "encode")
SEED = 20


def random_model(config: KLConfig = CONFIG, seed: int = SEED) -> AutoencoderKL:
    """The model on the CPU in float32; every parameter random, activations about 1."""
    model = build_kl(config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = noise / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.2 * noise
    for layer in model.modules():
        if isinstance(layer, nn.GroupNorm):
            layer.weight.data += 1
    return model.eval().requires_grad_(False)


def random_input(channels: int, height: int, width: int, seed: int = SEED) -> Tensor:
    """(1, channels, height, width) float32: a gradient across the image, noise, and one value in a thousand far off."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.5 * torch.randn(1, channels, height, width, generator=generator)
    x += torch.linspace(-1, 1, height)[:, None] + torch.linspace(-0.5, 0.5, width)
    far = torch.rand(x.shape, generator=generator) < 1e-3
    return torch.where(far, 8 * x, x)


@dataclass
class Models:
    """One set of weights in one dtype on one device; the float64 copy is made when it is first asked for."""

    base: AutoencoderKL
    dtype: torch.dtype
    device: torch.device
    config: KLConfig = CONFIG

    @cached_property
    def ours(self) -> AutoencoderKL:
        """The module, with the weights as they are in this dtype."""
        return copy.deepcopy(self.base).to(self.device, self.dtype)

    @cached_property
    def double(self) -> AutoencoderKL:
        """The rounded weights of `ours`, computed with in float64."""
        return copy.deepcopy(self.ours).double()


@dataclass(frozen=True)
class Case:
    """One direction and size with its input on the device."""

    models: Models
    direction: str
    size: int
    x: Tensor

    @property
    def result_shape(self) -> tuple[int, int, int, int]:
        """(B, C, H, W) of the result: raw image or mean of the posterior."""
        config, f = self.models.config, self.models.config.factor
        if self.direction == "decode":
            return (self.x.shape[0], config.out_ch, self.x.shape[2] * f, self.x.shape[3] * f)
        return (self.x.shape[0], config.latent_channels, self.x.shape[2] // f, self.x.shape[3] // f)

    @property
    def result_bytes(self) -> int:
        """Bytes of the result in the dtype of the run."""
        return torch.Size(self.result_shape).numel() * self.models.dtype.itemsize


def make_case(models: Models, direction: str, size: int) -> Case:
    """A square image of `size` pixels, or its latent."""
    config = models.config
    side, channels = (size // config.factor, config.latent_channels) if direction == "decode" else (size, 3)
    return Case(models, direction, size, random_input(channels, side, side).to(models.device, models.dtype))


def run_untiled(model: Any, direction: str, x: Tensor) -> Tensor:
    """Our module the ordinary way: raw image, or mean of the posterior."""
    if direction == "decode":
        return model.decode(x)
    moments, _ = model.encode(x, unregularized=True)
    return moments[:, : moments.shape[1] // 2]
