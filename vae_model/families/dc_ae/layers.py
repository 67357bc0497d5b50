"""Layers of the deep compression autoencoder. Attribute names equal diffusers' keys.

Attention has no softmax: what all positions share are sums. diffusers takes another order of the products where there
are fewer positions than channels of a head; the result is the same. Source: mit-han-lab efficientvit and diffusers
`AutoencoderDC` (Apache-2.0), re-implemented.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...exact.layer import RootNorm
from ...exact.stream.per_pixel import normalise
from .config import Stage

EPS = 1e-5
"""Of every norm."""
ATTENTION_EPS = 1e-15
EXPANSION = 4
"""Channels of a gated convolution, to each of which there is a gate, in those that go in."""
_IN_PLACE = {"relu": functional.relu, "silu": functional.silu, "mish": functional.mish}
_HEADS = 8
"""Whose queries, keys and values there are at once in float32."""


def activate(x: Tensor, name: str) -> Tensor:
    """One of `config.ACTIVATIONS`, of a tensor nobody else holds: in place, unless autograd needs the input."""
    if name == "gelu":
        return functional.gelu(x)
    return _IN_PLACE[name](x, inplace=not torch.is_grad_enabled())


class RMSNorm(nn.Module):
    """(B, C, H, W): every pixel by the root of its mean square; rounded once."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.eps = EPS

    def forward(self, x: Tensor) -> Tensor:
        kind = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(kind), self.bias.to(kind)
        if not torch.is_grad_enabled():
            out = x.clone()
            normalise(out, RootNorm(self, "norm", x.shape[1], self.eps), weight, bias)
            return out
        wide = x.to(kind)
        scale = torch.rsqrt(wide.square().mean(dim=1, keepdim=True) + self.eps)
        return torch.addcmul(bias[:, None, None], wide * scale, weight[:, None, None]).to(x.dtype)


def norm_of(name: str, channels: int) -> nn.Module:
    """One of `config.NORMS`."""
    return RMSNorm(channels) if name == "rms_norm" else nn.BatchNorm2d(channels, EPS)


class ResBlock(nn.Module):
    """Two convolutions, then the norm, plus the input."""

    decides = ("activation",)

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.activation = stage.activation
        self.conv1 = nn.Conv2d(stage.width, stage.width, 3, padding=1)
        self.conv2 = nn.Conv2d(stage.width, stage.width, 3, padding=1, bias=False)
        self.norm = norm_of(stage.norm, stage.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv2(activate(self.conv1(x), self.activation))) + x


class Scale(nn.Module):
    """Queries, keys and values at a larger scale."""

    def __init__(self, heads: int, head_dim: int, kernel: int) -> None:
        super().__init__()
        channels = 3 * heads * head_dim
        self.proj_in = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)
        self.proj_out = nn.Conv2d(channels, channels, 1, groups=3 * heads, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj_out(self.proj_in(x))


class LinearAttention(nn.Module):
    """x + norm(out(attention(x))). Queries, keys and values take turns as blocks of the three projections' channels,
    whichever of these they are of."""

    decides = ("head_dim",)

    def __init__(self, stage: Stage, head_dim: int) -> None:
        super().__init__()
        width, heads = stage.width, stage.width // head_dim
        self.head_dim, inner = head_dim, heads * head_dim
        self.to_q, self.to_k, self.to_v = (nn.Conv2d(width, inner, 1, bias=False) for _ in range(3))
        self.to_qkv_multiscale = nn.ModuleList(Scale(heads, head_dim, kernel) for kernel in stage.scales)
        self.to_out = nn.Conv2d(inner * (1 + len(stage.scales)), width, 1, bias=False)
        self.norm_out = norm_of(stage.norm, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = torch.cat([layer(x) for layer in (self.to_q, self.to_k, self.to_v)], dim=1)
        found = self._attended(qkv)
        for scale in self.to_qkv_multiscale:
            found += self._attended(scale(qkv))
        del qkv
        return self.norm_out(self.to_out(torch.cat(found, dim=1))) + x

    def _attended(self, qkv: Tensor) -> list[Tensor]:
        """Results of some heads each: (B, G * 3d, H, W) -> (B, g * d, H, W)."""
        found: list[Tensor] = []
        for part in qkv.split(3 * self.head_dim * _HEADS, dim=1):
            wide = part.to(torch.promote_types(part.dtype, torch.float32))
            q, k, v = wide.unflatten(1, (-1, 3 * self.head_dim)).flatten(3).chunk(3, dim=2)  # (B, g, d, N)
            q, k = functional.relu(q), functional.relu(k)
            h = v @ k.transpose(2, 3) @ q
            h = h / (k.sum(dim=3)[:, :, None] @ q + ATTENTION_EPS)
            found.append(h.flatten(1, 2).unflatten(2, qkv.shape[2:]).to(qkv.dtype))
        return found


class GatedConvolution(nn.Module):
    """Wide, every channel by itself, gated, narrow again, then the norm, plus the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = EXPANSION * width
        self.conv_inverted = nn.Conv2d(width, 2 * wide, 1)
        self.conv_depth = nn.Conv2d(2 * wide, 2 * wide, 3, padding=1, groups=2 * wide)
        self.conv_point = nn.Conv2d(wide, width, 1, bias=False)
        self.norm = RMSNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        h, gate = self.conv_depth(activate(self.conv_inverted(x), "silu")).chunk(2, dim=1)
        return self.norm(self.conv_point(h * functional.silu(gate))) + x


class EfficientViTBlock(nn.Module):
    """Attention, then the gated convolution."""

    def __init__(self, stage: Stage, head_dim: int) -> None:
        super().__init__()
        self.attn = LinearAttention(stage, head_dim)
        self.conv_out = GatedConvolution(stage.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.attn(x))


class Down(nn.Module):
    """(B, in, 2h, 2w) -> (B, out, h, w), with means of pixels and channels beside it if wanted."""

    decides = ("pixels", "shortcut")

    def __init__(self, in_channels: int, out_channels: int, *, pixels: bool, shortcut: bool) -> None:
        super().__init__()
        self.pixels, self.shortcut, self.out_channels = pixels, shortcut, out_channels
        if pixels:
            self.conv = nn.Conv2d(in_channels, out_channels // 4, 3, padding=1)
        else:
            self.conv = nn.Conv2d(in_channels, out_channels, 3, 2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.pixel_unshuffle(self.conv(x), 2) if self.pixels else self.conv(x)
        if not self.shortcut:
            return h
        return h + functional.pixel_unshuffle(x, 2).unflatten(1, (self.out_channels, -1)).mean(dim=2)


class Up(nn.Module):
    """(B, in, h, w) -> (B, out, 2h, 2w), with pixels of repeated channels beside it if wanted."""

    decides = ("pixels", "shortcut")

    def __init__(self, in_channels: int, out_channels: int, *, pixels: bool, shortcut: bool) -> None:
        super().__init__()
        self.pixels, self.shortcut, self.repeats = pixels, shortcut, 4 * out_channels // in_channels
        self.conv = nn.Conv2d(in_channels, out_channels * (4 if pixels else 1), 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.pixels:
            h = functional.pixel_shuffle(self.conv(x), 2)
        else:
            h = self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        if not self.shortcut:
            return h
        return h + functional.pixel_shuffle(x.repeat_interleave(self.repeats, dim=1), 2)
