"""TAEHV and its kin: tiny autoencoders of clips, for Wan, HunyuanVideo, LTX and others; the original's keys.

Source: madebyollin/taehv (MIT), re-implemented: every block sees its own frame and the one before it; frames are
pooled and grown by 1x1 convolutions; the first frames that a decoder makes, which see nothing before them, are left
out, and an encoder is given the last frame again until there are enough.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..arguments import half_of, require_planes
from .config import BLOCKS, FORMATS, STAGES, TAEHVConfig


def _activation(name: str) -> nn.Module:
    return nn.ReLU(inplace=True) if name == "relu" else nn.LeakyReLU(0.2, inplace=True)


def _conv(before: int, after: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride, 1, bias=bias)


class Clamp(nn.Module):
    """3 tanh(x / 3)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class MemBlock(nn.Module):
    """Three convolutions over a frame and the one before it, zeros before the first one, beside the frame itself."""

    def __init__(self, width: int, act_fn: str) -> None:
        super().__init__()
        layers = [_conv(2 * width, width), _activation(act_fn), _conv(width, width), _activation(act_fn)]
        self.conv = nn.Sequential(*layers, _conv(width, width))
        self.skip = nn.Identity()
        self.act = _activation(act_fn)

    def forward(self, x: Tensor) -> Tensor:
        """(T, width, h, w), the frames of one clip, likewise."""
        past = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
        return self.act(self.conv(torch.cat([x, past], 1)) + self.skip(x))


class TPool(nn.Module):
    """`stride` frames to one by a 1x1 convolution."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width * stride, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.reshape(-1, self.stride * x.shape[1], *x.shape[2:]))


class TGrow(nn.Module):
    """A frame to `stride` of them by a 1x1 convolution."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width, width * stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).reshape(-1, *x.shape[1:])


def _blocks(width: int, act_fn: str) -> list[nn.Module]:
    return [MemBlock(width, act_fn) for _ in range(BLOCKS)]


def make_encoder(config: TAEHVConfig, width: int) -> nn.Sequential:
    """Pixels in squares to latents, as one sequence of layers."""
    layers: list[nn.Module] = [_conv(3 * config.patch**2, width), _activation(config.act_fn)]
    for over_time in config.encoder_over_time:
        layers += [TPool(width, 1 + over_time), _conv(width, width, stride=2, bias=False)]
        layers += _blocks(width, config.act_fn)
    return nn.Sequential(*layers, _conv(width, config.latent_channels))


def make_decoder(config: TAEHVConfig, widths: tuple[int, ...]) -> nn.Sequential:
    """Latents to pixels in squares, as one sequence of layers."""
    layers: list[nn.Module] = [Clamp(), _conv(config.latent_channels, widths[0]), _activation(config.act_fn)]
    for stage, over_time in enumerate(config.decoder_over_time):
        width, following = widths[stage : stage + 2]
        layers += [*_blocks(width, config.act_fn), nn.Upsample(scale_factor=2), TGrow(width, 1 + over_time)]
        layers.append(_conv(width, following, bias=False))
    return nn.Sequential(*layers, _activation(config.act_fn), _conv(widths[STAGES], 3 * config.patch**2))


class TAEHV(nn.Module):
    """Encoder and decoder, and the numbers between raw latents and those that they work on."""

    def __init__(self, config: TAEHVConfig) -> None:
        super().__init__()
        self.config = config
        if config.encoder_width is not None:
            self.encoder = make_encoder(config, config.encoder_width)
        if config.decoder_widths is not None:
            self.decoder = make_decoder(config, config.decoder_widths)

    def encode(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) in -1..1 to raw latents (B, z, H // f, W // f).

        Clips (B, 3, F, H, W) to (B, z, T, H // f, W // f): the last frame is repeated until all are used.
        """
        encoder = half_of(self, "encoder")
        require_planes(x[:, :, 0] if x.ndim == 5 else x, 3, "TAEHV", encoder[0])
        return self._by_clip(self._encode, x)

    def decode(self, z: Tensor) -> Tensor:
        """Raw latents (B, z, h, w) to images (B, 3, h * f, w * f), about -1..1, not clamped.

        Those of clips (B, z, 1 + n, h, w) to (B, 3, 1 + n * time_factor, h * f, w * f).
        """
        decoder = half_of(self, "decoder")
        channels = self.config.latent_channels
        require_planes(z[:, :, 0] if z.ndim == 5 else z, channels, "TAEHV", decoder[1])
        return self._by_clip(self._decode, z)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(latents, reconstruction)."""
        z = self.encode(x)
        return z, self.decode(z)

    def own(self, rows: Tensor) -> Tensor:
        """Raw latents (T, z, h, w) -> what the network works on."""
        scale, shift = self._numbers(rows)
        return (rows - shift) * scale

    def raw(self, rows: Tensor) -> Tensor:
        """The way back."""
        scale, shift = self._numbers(rows)
        return rows / scale + shift

    def _numbers(self, rows: Tensor) -> tuple[Tensor | float, Tensor | float]:
        one = FORMATS[self.config.latent_format or "raw"]
        if not one.means:
            return one.scale, one.shift
        means, deviations = (rows.new_tensor(numbers)[:, None, None] for numbers in (one.means, one.deviations))
        return 1 / deviations, means

    def _by_clip(self, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if x.ndim == 4:
            return torch.cat([call(picture[None]) for picture in x])
        return torch.stack([call(clip.transpose(0, 1)).transpose(0, 1) for clip in x])

    def _encode(self, frames: Tensor) -> Tensor:
        missing = -len(frames) % self.config.time_factor
        frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
        return self.raw(self.encoder(functional.pixel_unshuffle((frames + 1) / 2, self.config.patch)))

    def _decode(self, frames: Tensor) -> Tensor:
        made = functional.pixel_shuffle(self.decoder(self.own(frames)), self.config.patch)
        return made[self.config.time_factor - 1 :] * 2 - 1
