"""TAESD and TAEF2 as the host builds them, 16 channels wide: plain sequences, or classes of their own as newer ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 16


def conv(inward: int, outward: int, **options: Any) -> nn.Module:
    return nn.Conv2d(inward, outward, kernel_size=3, padding=1, **options)


class Clamp(nn.Module):
    """The soft limit at the beginning of the decoder."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(z / 3) * 3


class Block(nn.Module):
    """Three convolutions and a skip; TAEF2 has a branch with a norm in some, the others have None for it."""

    def __init__(self, pooled: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(*[layer for _ in range(3) for layer in (conv(WIDTH, WIDTH), nn.ReLU())][:-1])
        self.skip = nn.Identity()
        self.fuse = nn.ReLU()
        inner = 4 * WIDTH
        self.pool = None
        if pooled:
            ends = [nn.Conv2d(a, b, kernel_size=1, bias=False) for a, b in ((WIDTH, inner), (inner, WIDTH))]
            self.pool = nn.Sequential(ends[0], nn.GroupNorm(4, inner), nn.ReLU(inplace=True), ends[1])

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.pool is None else x + self.pool(x)
        return self.fuse(self.conv(x) + self.skip(x))


def encoder_layers(channels: int, pooled: bool) -> list[nn.Module]:
    layers = [conv(3, WIDTH), Block()]
    for stage in range(3):
        blocks = [Block(pooled and stage == 2) for _ in range(3)]
        layers += [conv(WIDTH, WIDTH, stride=2, bias=False), *blocks]
    return [*layers, conv(WIDTH, channels)]


def decoder_layers(channels: int, pooled: bool) -> list[nn.Module]:
    layers: list[nn.Module] = [Clamp(), conv(channels, WIDTH), nn.ReLU()]
    for stage in range(3):
        blocks = [Block(pooled and stage == 0) for _ in range(3)]
        layers += [*blocks, nn.Upsample(scale_factor=2), conv(WIDTH, WIDTH, bias=False)]
    return [*layers, Block(), conv(WIDTH, 3)]


class Encoder(nn.Sequential):
    """TAESD's in newer hosts."""


class Decoder(nn.Sequential):
    """TAESD's in newer hosts."""


class EncoderFlux2(Encoder):
    """Squares of four cells end up in the channels of one."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.pixel_unshuffle(super().forward(x), 2)


class DecoderFlux2(Decoder):
    """The inverse, before the layers."""

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(functional.pixel_shuffle(z, 2))


class TinyModel(nn.Module):
    """TAESD under the names that the host gives it; `packed`: TAEF2."""

    def __init__(self, classes: bool = False, packed: bool = False) -> None:
        super().__init__()
        encoder: type[nn.Sequential] = EncoderFlux2 if packed else Encoder if classes else nn.Sequential
        decoder: type[nn.Sequential] = DecoderFlux2 if packed else Decoder if classes else nn.Sequential
        channels = 8 if packed else 4
        self.taesd_encoder = encoder(*encoder_layers(channels, packed))
        self.taesd_decoder = decoder(*decoder_layers(channels, packed))
        self.vae_scale = nn.Parameter(torch.tensor(0.18215))
        self.vae_shift = nn.Parameter(torch.tensor(0.1))

    def decode(self, z: Tensor) -> Tensor:
        return self.taesd_decoder((z - self.vae_shift) * self.vae_scale) * 2 - 1

    def encode(self, x: Tensor) -> Tensor:
        return self.taesd_encoder(x * 0.5 + 0.5) / self.vae_scale + self.vae_shift
