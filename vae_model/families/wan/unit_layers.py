"""Units of a Wan 2.2 or Qwen-Image 2.1 autoencoder: a level's blocks and the layer to the next one, with a shortcut
without weights beside them all. Attribute names equal the original's keys.

A shortcut reads a frame's squares of 2x2 pixels as channels, or channels as squares, and where frames are halved or
doubled two frames of these. The first frame of a clip is the later one of two, of which the earlier is dropped, or
zeros: of a picture, then, the half of the channels counts. Source: Wan-Video Wan2.2 `wan/modules/vae2_2.py` and
diffusers `AutoencoderKLWan` (Apache-2.0), which run clips by one and four frames; re-implemented for all at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from ...exact.stream.squares import Corners, Squares, gather, spread
from .layers import Resample, ResidualBlock


def spread_squares(in_channels: int, out_channels: int, factor_t: int, *, clips: bool) -> Squares:
    """Channels repeated to (out, frames, 2, 2): pictures take the last frame. ValueError where they do not fit."""
    repeats, rest = divmod(4 * factor_t * out_channels, in_channels)
    if rest or in_channels % out_channels or not repeats:
        raise ValueError(f"shortcut: expected channels that fit, got {in_channels} to {out_channels}: correct them")
    return _squares(out_channels, in_channels // out_channels, repeats, factor_t, clips)


def gather_squares(in_channels: int, out_channels: int, factor_t: int, *, clips: bool) -> tuple[Squares, int]:
    """Pixels as (in, frames, 2, 2), averaged in runs, and how long these are: of pictures the last frame is not zeros.

    ValueError where they do not fit.
    """
    run, rest = divmod(4 * factor_t * in_channels, out_channels)
    if rest or out_channels % in_channels or not run:
        raise ValueError(f"shortcut: expected channels that fit, got {in_channels} to {out_channels}: correct them")
    return _squares(in_channels, out_channels // in_channels, run, factor_t, clips), run


PATCH: Corners = (0, 2, 1, 3)
"""Where the pixels of 2x2 squares of an image lie in the channels of what the network sees: column by column."""


def _squares(channels: int, step: int, run: int, factor_t: int, clips: bool) -> Squares:
    """Of channels (c, frames, 2, 2), each of which stands for `run` in a row."""
    later, earlier = (_corners(frame, run) for frame in (factor_t - 1, 0))
    return Squares(channels, later, step, earlier if clips and factor_t == 2 else None)


def _corners(frame: int, run: int) -> Corners:
    return 4 * frame // run, (4 * frame + 1) // run, (4 * frame + 2) // run, (4 * frame + 3) // run


def _by_clip(layer: Callable[[Tensor, Squares], Tensor], x: Tensor, squares: Squares) -> Tensor:
    """What a function of the frames of a clip (T, C, H, W) makes of clips (B, C, T, H, W), and of pictures."""
    if x.ndim == 4:
        return layer(x, replace(squares, earlier=None))
    clips = [layer(clip.transpose(0, 1), squares).transpose(0, 1) for clip in x]
    return clips[0][None] if len(clips) == 1 else torch.stack(clips)


class DupUp3D(nn.Module):
    """(B, in, h, w) -> (B, out, 2h, 2w); with `factor_t` 2 clips (B, in, 1 + n, h, w) -> (B, out, 1 + 2n, 2h, 2w)."""

    factor_s = 2
    decides = ("factor_t",)

    def __init__(self, in_channels: int, out_channels: int, factor_t: int, *, clips: bool) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.factor_t = in_channels, out_channels, factor_t
        self.squares = spread_squares(in_channels, out_channels, factor_t, clips=clips)

    def forward(self, x: Tensor) -> Tensor:
        return _by_clip(spread, x, self.squares)


class AvgDown3D(nn.Module):
    """The way back, by means; with `factor_s` 1 what went in."""

    decides = ("factor_t", "factor_s")

    def __init__(self, in_channels: int, out_channels: int, factor_t: int, factor_s: int, *, clips: bool) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.factor_t, self.factor_s = factor_t, factor_s
        if factor_s == 2:
            self.squares, self.run = gather_squares(in_channels, out_channels, factor_t, clips=clips)
        elif in_channels != out_channels:
            raise ValueError(f"shortcut: expected {in_channels} channels, got {out_channels}: correct the widths")

    def forward(self, x: Tensor) -> Tensor:
        if self.factor_s == 1:
            return x
        return _by_clip(self._gathered, x, self.squares)

    def _gathered(self, frames: Tensor, squares: Squares) -> Tensor:
        height, width = frames.shape[2] // 2, frames.shape[3] // 2
        out = frames.new_zeros(squares.frames_of_cells(len(frames)), self.out_channels, height, width)
        gather(out, frames, squares, self.run)
        return out


class Up_ResidualBlock(nn.Module):  # noqa: N801  the name by which programs and other code know it
    """Blocks, and in every level but the last an upsample with a shortcut: (B, in, h, w) -> (B, out, 2h, 2w).

    `taps`: frames that convolutions see; 1 of a network of pictures, which knows no clips.
    """

    def __init__(self, in_dim: int, out_dim: int, blocks: int, *, up: bool, over_time: bool, taps: int) -> None:
        super().__init__()
        self.avg_shortcut = DupUp3D(in_dim, out_dim, 1 + over_time, clips=taps > 1) if up else None
        dims = [in_dim, *[out_dim] * blocks]
        layers: list[nn.Module] = [ResidualBlock(dims[n], out_dim, frames=taps) for n in range(blocks)]
        if up:
            layers.append(Resample(out_dim, up=True, over_time=over_time, keeps=True, frames=taps))
        self.upsamples = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for layer in self.upsamples:
            h = layer(h)
        return h if self.avg_shortcut is None else h.add_(self.avg_shortcut(x))


class Down_ResidualBlock(nn.Module):  # noqa: N801
    """Blocks, and in every level but the last what halves both sides, with a shortcut beside them all."""

    def __init__(self, in_dim: int, out_dim: int, blocks: int, *, down: bool, over_time: bool, taps: int) -> None:
        super().__init__()
        self.avg_shortcut = AvgDown3D(in_dim, out_dim, 1 + over_time, 1 + down, clips=taps > 1)
        dims = [in_dim, *[out_dim] * blocks]
        layers: list[nn.Module] = [ResidualBlock(dims[n], out_dim, frames=taps) for n in range(blocks)]
        if down:
            layers.append(Resample(out_dim, up=False, over_time=over_time, frames=taps))
        self.downsamples = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for layer in self.downsamples:
            h = layer(h)
        return h.add_(self.avg_shortcut(x))
