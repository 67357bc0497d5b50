"""The units of the Qwen-Image 2.1 autoencoder: a level's blocks, and the layer to the next one, with a shortcut beside.

Names of classes and attributes are those of Wan 2.2, of which this is the form for images: convolutions keep an axis
of frames, of length 1, and shortcuts keep room for a frame before the first, whose channels are dropped, or zeros.
Source: Wan-Video Wan2.2 `wan/modules/vae2_2.py` and diffusers `AutoencoderKLQwenImage21` (Apache-2.0), re-implemented.
"""

from __future__ import annotations

from torch import Tensor, nn

from ...exact.stream.squares import Squares, gather, spread
from ..wan.layers import Resample, ResidualBlock


def spread_squares(in_channels: int, out_channels: int, factor_t: int) -> Squares:
    """Channels repeated to (out, frames, 2, 2), of which the last frame is taken. ValueError where they do not fit."""
    repeats, rest = divmod(4 * factor_t * out_channels, in_channels)
    if rest or in_channels % out_channels or not repeats:
        raise ValueError(f"shortcut: expected channels that fit, got {in_channels} to {out_channels}: correct them")
    places = [(4 * (factor_t - 1) + place) // repeats for place in range(4)]
    return Squares(out_channels, (places[0], places[1], places[2], places[3]), in_channels // out_channels)


def gather_squares(in_channels: int, out_channels: int, factor_t: int) -> tuple[Squares, int]:
    """Pixels as (in, frames, 2, 2), the last frame alone not zeros, averaged in runs; and how long these are.

    ValueError where they do not fit.
    """
    run, rest = divmod(4 * factor_t * in_channels, out_channels)
    if rest or out_channels % in_channels or not run:
        raise ValueError(f"shortcut: expected channels that fit, got {in_channels} to {out_channels}: correct them")
    places = [(4 * (factor_t - 1) + place) // run for place in range(4)]
    return Squares(in_channels, (places[0], places[1], places[2], places[3]), out_channels // in_channels), run


class DupUp3D(nn.Module):
    """(B, in, h, w) -> (B, out, 2h, 2w)."""

    factor_s = 2

    def __init__(self, in_channels: int, out_channels: int, factor_t: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.factor_t = in_channels, out_channels, factor_t
        self.squares = spread_squares(in_channels, out_channels, factor_t)

    def forward(self, x: Tensor) -> Tensor:
        return spread(x, self.squares)


class AvgDown3D(nn.Module):
    """(B, in, 2h, 2w) -> (B, out, h, w); with `factor_s` 1 what went in."""

    def __init__(self, in_channels: int, out_channels: int, factor_t: int, factor_s: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.factor_t, self.factor_s = factor_t, factor_s
        if factor_s == 2:
            self.squares, self.run = gather_squares(in_channels, out_channels, factor_t)
        elif in_channels != out_channels:
            raise ValueError(f"shortcut: expected {in_channels} channels, got {out_channels}: correct the widths")

    def forward(self, x: Tensor) -> Tensor:
        if self.factor_s == 1:
            return x
        out = x.new_zeros(x.shape[0], self.out_channels, x.shape[2] // 2, x.shape[3] // 2)
        gather(out, x, self.squares, self.run)
        return out


class Up_ResidualBlock(nn.Module):  # noqa: N801  the name by which programs and other code know it
    """Blocks, and in every level but the last an upsample with a shortcut: (B, in, h, w) -> (B, out, 2h, 2w)."""

    def __init__(self, in_dim: int, out_dim: int, blocks: int, *, up: bool, over_time: bool) -> None:
        super().__init__()
        self.avg_shortcut = DupUp3D(in_dim, out_dim, 1 + over_time) if up else None
        dims = [in_dim, *[out_dim] * blocks]
        layers: list[nn.Module] = [ResidualBlock(dims[n], out_dim, frames=1) for n in range(blocks)]
        if up:
            layers.append(Resample(out_dim, up=True, over_time=over_time, keeps=True, frames=1))
        self.upsamples = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for layer in self.upsamples:
            h = layer(h)
        return h if self.avg_shortcut is None else h.add_(self.avg_shortcut(x))


class Down_ResidualBlock(nn.Module):  # noqa: N801
    """Blocks, and in every level but the last what halves both sides, with a shortcut beside them all."""

    def __init__(self, in_dim: int, out_dim: int, blocks: int, *, down: bool, over_time: bool) -> None:
        super().__init__()
        self.avg_shortcut = AvgDown3D(in_dim, out_dim, 1 + over_time, 1 + down)
        dims = [in_dim, *[out_dim] * blocks]
        layers: list[nn.Module] = [ResidualBlock(dims[n], out_dim, frames=1) for n in range(blocks)]
        if down:
            layers.append(Resample(out_dim, up=False, over_time=over_time, frames=1))
        self.downsamples = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for layer in self.downsamples:
            h = layer(h)
        return h.add_(self.avg_shortcut(x))
