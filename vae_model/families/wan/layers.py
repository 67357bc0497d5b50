"""Layers of the Wan 2.1 and Qwen-Image autoencoder for single frames. Attribute names equal the original's keys.

The model is causal in time and sees zeros before its first frame, so of every kernel over frames only the last tap acts
on a single one: convolutions keep their stored three-dimensional weights and run in two dimensions.
Source: Wan-Video Wan2.1 `wan/modules/vae.py` (Apache-2.0), re-implemented for one frame.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...attention.backends import AttentionFunction, chosen_attention
from ...kernels.pixel_norm import inverse_length, normalise_into
from ..ldm.layers import activate_fresh, nearest_x2


class RMS_norm(nn.Module):  # noqa: N801  the name by which programs and other code know it
    """Every pixel divided by its root mean square over the channels, times `gamma` (C, 1, 1, 1) or (C, 1, 1)."""

    bias = None

    def __init__(self, dim: int, *, images: bool = False) -> None:
        super().__init__()
        self.scale = dim**0.5
        self.gamma = nn.Parameter(torch.ones((dim, 1, 1) if images else (dim, 1, 1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape and dtype, always a new tensor."""
        gamma = self.gamma.reshape(-1, 1, 1)
        if torch.is_grad_enabled():
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            return (wide * inverse_length(wide) * gamma).to(x.dtype)
        out = torch.empty_like(x)
        normalise_into(out, x, gamma)
        return out


class CausalConv3d(nn.Conv3d):
    """A convolution over frames, rows and columns, of one frame: its last tap over the frames, on (B, C, H, W).

    `frames`: taps over the frames, as many as over rows unless told.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3, *, frames: int | None = None) -> None:
        side = kernel // 2
        super().__init__(in_channels, out_channels, (frames or kernel, kernel, kernel), padding=(0, side, side))

    def forward(self, input: Tensor) -> Tensor:
        return functional.conv2d(input, self.weight[:, :, -1], self.bias, padding=self.padding[1:])


class Resample(nn.Module):
    """Upsample, halving the channels, or halve both sides; `time_conv` acts from the second frame on, never here.

    `keeps`: whether an upsample keeps its channels. `frames`: taps of `time_conv`.
    """

    def __init__(self, dim: int, *, up: bool, over_time: bool, keeps: bool = False, frames: int = 3) -> None:
        super().__init__()
        if up:
            upsample = nn.Upsample(scale_factor=(2.0, 2.0), mode="nearest-exact")
            self.resample = nn.Sequential(upsample, nn.Conv2d(dim, dim if keeps else dim // 2, 3, padding=1))
        else:
            self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(dim, dim, 3, stride=2))
        if over_time:
            self.time_conv = nn.Conv3d(dim, 2 * dim if up else dim, (frames, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        first, conv = self.resample
        return conv(nearest_x2(x) if isinstance(first, nn.Upsample) else first(x))


class ResidualBlock(nn.Module):
    """Norm, SiLU and convolution, twice, plus the input or its 1x1 shortcut."""

    def __init__(self, in_dim: int, out_dim: int, *, frames: int = 3) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            RMS_norm(in_dim),
            nn.SiLU(),
            CausalConv3d(in_dim, out_dim, frames=frames),
            RMS_norm(out_dim),
            nn.SiLU(),
            nn.Dropout(0.0),
            CausalConv3d(out_dim, out_dim, frames=frames),
        )
        self.shortcut = CausalConv3d(in_dim, out_dim, 1) if in_dim != out_dim else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        norm1, _, conv1, norm2, _, _, conv2 = self.residual
        h = conv1(activate_fresh(norm1(x)))
        h = activate_fresh(norm2(h))  # rebound before the convolution, so that its source is freed
        h = conv2(h)
        return h.add_(self.shortcut(x))


class AttentionBlock(nn.Module):
    """x + proj(attention(norm(x))): one head over all pixels; q, k and v are thirds of one 1x1 convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = RMS_norm(dim, images=True)
        self.to_qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)
        self.attend: AttentionFunction = chosen_attention

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2)  # (B, H*W, 3C)
        h = self.attend(*tokens.chunk(3, dim=2)).transpose(1, 2).reshape(x.shape)
        return self.proj(h).add_(x)
