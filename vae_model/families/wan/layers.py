"""Layers of the Wan 2.1 and Qwen-Image autoencoder, of pictures and of whole clips. Attribute names equal the
original's keys.

The model is causal in time and sees zeros before its first frame, so of every kernel over frames only the last tap acts
on a picture: convolutions keep their stored three-dimensional weights and run in two dimensions.
Source: Wan-Video Wan2.1 `wan/modules/vae.py` (Apache-2.0), which runs clips by one and four frames and keeps what
convolutions saw before; re-implemented for all frames at once, which computes the same.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...attention.backends import AttentionFunction, chosen_attention
from ...kernels.pixel_norm import inverse_length, normalise_into
from ..ldm.layers import activate_fresh, nearest_x2


def by_frame(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What a layer of pictures makes of every frame of clips (B, C, T, H, W); pictures (B, C, H, W) as they are."""
    if x.ndim == 4:
        return layer(x)
    frames = layer(x.transpose(1, 2).flatten(0, 1))  # (B * T, C, H, W)
    return frames.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


class RMS_norm(nn.Module):  # noqa: N801  the name by which programs and other code know it
    """Every pixel divided by its root mean square over the channels, times `gamma` (C, 1, 1, 1) or (C, 1, 1)."""

    bias = None

    def __init__(self, dim: int, *, images: bool = False) -> None:
        super().__init__()
        self.scale = dim**0.5
        self.gamma = nn.Parameter(torch.ones((dim, 1, 1) if images else (dim, 1, 1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) or (B, C, T, H, W) -> the same shape and dtype, always a new tensor."""
        return by_frame(self._normalised, x)

    def _normalised(self, x: Tensor) -> Tensor:
        gamma = self.gamma.reshape(-1, 1, 1)
        if torch.is_grad_enabled():
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            return (wide * inverse_length(wide) * gamma).to(x.dtype)
        out = torch.empty_like(x)
        normalise_into(out, x, gamma)
        return out


class CausalConv3d(nn.Conv3d):
    """A convolution over frames, rows and columns that sees zeros before the first frame of clips (B, C, T, H, W).

    Of pictures (B, C, H, W) it is its last tap over the frames.

    `frames`: taps over the frames, as many as over rows unless told.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3, *, frames: int | None = None) -> None:
        side = kernel // 2
        super().__init__(in_channels, out_channels, (frames or kernel, kernel, kernel), padding=(0, side, side))

    def forward(self, input: Tensor) -> Tensor:
        side = self.kernel_size[1] // 2
        if input.ndim == 4:
            return functional.conv2d(input, self.weight[:, :, -1], self.bias, padding=side)
        before = functional.pad(input, (0, 0, 0, 0, self.kernel_size[0] - 1, 0))
        return functional.conv3d(before, self.weight, self.bias, padding=(0, side, side))


class Resample(nn.Module):
    """Upsample, halving the channels, or halve both sides; with `time_conv` also 1 + n frames to 1 + 2n or back.

    The first frame is a picture of its own: it is no part of what `time_conv` sees when frames are doubled.

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
            self.time_conv = nn.Conv3d(dim, 2 * dim if up else dim, (frames, 1, 1), stride=(1 if up else 2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        up = isinstance(self.resample[0], nn.Upsample)
        doubles = hasattr(self, "time_conv") and x.ndim == 5 and x.shape[2] > 1
        if doubles and up:
            seen = functional.pad(x[:, :, 1:], (0, 0, 0, 0, self.time_conv.kernel_size[0] - 1, 0))
            pairs = self.time_conv(seen).unflatten(1, (2, -1))  # (B, 2, C, n, H, W)
            x = torch.cat([x[:, :, :1], pairs.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)], dim=2)
        x = by_frame(self._resampled, x)
        return torch.cat([x[:, :, :1], self.time_conv(x)], dim=2) if doubles and not up else x

    def _resampled(self, x: Tensor) -> Tensor:
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
        return by_frame(self._attended, x)

    def _attended(self, x: Tensor) -> Tensor:
        tokens = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2)  # (B, H*W, 3C)
        h = self.attend(*tokens.chunk(3, dim=2)).transpose(1, 2).reshape(x.shape)
        return self.proj(h).add_(x)
