"""Checks of what users hand to a VAE. Every error is one line: expected, found, what to do."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..notes import tell, warn

_LEAST, _MOST = -0.5, 1.5
"""What resampling leaves pixels of 0..1 within by far; those of -1..1 or 0..255 are beyond."""
_COUNTS = (4, 8, 12, 16, 24, 32, 48, 64, 128)
"""Channels that latents of some VAE have."""
_BYTES = 16.0
"""Larger pixels are not of 0..1 times a gain."""


def check_options(
    tile_size: Any, overlap: Any, progress: Callable[[float], None] | None
) -> tuple[int | None, int | None]:
    """Tile size and overlap as whole pixels, None where none is given; InputError for what no method takes."""
    if progress is not None and not callable(progress):
        found = type(progress).__name__
        raise InputError(f"progress: expected a function of the fraction done, got {found}: pass one, or nothing")
    return whole(tile_size, "tile_size", 1), whole(overlap, "overlap", 0)


def smaller_side(tile_x: Any, tile_y: Any) -> int | None:
    """Of ComfyUI's two sides of a tile the smaller one, None where there is none."""
    sides = [whole(tile_x, "tile_x", 1), whole(tile_y, "tile_y", 1)]
    return min([side for side in sides if side is not None], default=None)


def whole(value: Any, what: str, least: int) -> int | None:
    """A whole number of at least `least`, None where there is none; 64.0 is one. InputError for anything else."""
    if value is None:
        return None
    try:
        given: Any = int(value) if isinstance(value, float) and value.is_integer() else value
        number = operator.index(given)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise InputError(
            f"{what}: expected a whole number, got {value!r}: pass a number without a fraction, or nothing"
        )
    if number < least:
        raise InputError(f"{what}: expected at least {least}, got {number}: make it larger")
    return number


def check_latents(samples: Tensor, channels: int) -> Tensor:
    """Latents as (B, channels, h, w); a single frame (B, channels, 1, h, w) is taken as an image; 8 bits as float32."""
    samples = _require_tensor(samples, "latents", f"(batch, {channels}, height, width)")
    if samples.ndim == 5:
        _require_one_frame("latents", samples.shape[2])
        samples = samples[:, :, 0]
    shape = tuple(samples.shape)
    if samples.ndim != 4 or 0 in shape:
        way = _way_to_a_batch(shape, (channels,), "samples", 1) or "check what made them"
        raise InputError(f"latents: expected (batch, {channels}, height, width), got {shape}: {way}")
    if shape[1] != channels:
        if channels_are_last(shape, channels):
            raise InputError(
                f"latents: expected (batch, {channels}, height, width), got {shape}: "
                "the channels are last, pass samples.movedim(-1, 1)"
            )
        raise InputError(
            f"latents: expected {channels} channels for this VAE, got {shape[1]}: use the VAE that belongs to the model"
        )
    if not samples.is_floating_point():
        raise InputError(
            f"latents: expected floats, got {samples.dtype}: pass what encode returned; whole numbers are no latents"
        )
    _check_finite(samples, "latents", "sample again or lower the guidance")
    return samples


def channels_are_last(shape: tuple[int, ...], channels: int) -> bool:
    """Whether latents have them there, rather than another VAE's number of them behind the batch."""
    return shape[-1] == channels and shape[1] not in _COUNTS


def check_timesteps(timesteps: Any, frames: int, temporal: bool) -> int:
    """How many of `frames` are decoded together: 1 for image models, else all of them unless told otherwise."""
    if not temporal:
        if timesteps not in (None, 1):
            raise InputError(f"timesteps: expected none for an image decoder, got {timesteps}: leave it out")
        return 1
    group = whole(timesteps, "timesteps", 1) or frames
    if frames % group:
        raise InputError(
            f"timesteps: expected a divisor of the batch of {frames} frames, got {timesteps}: pass whole groups"
        )
    return group


def check_pixels(pixels: Tensor, channels: int, factor: int) -> Tensor:
    """Images as (B, H, W, channels). (B, 1, H, W, channels) are images, too.

    One channel more is taken for alpha and cut off, with a note; so is said what is clearly not in 0..1.
    """
    pixels = _require_tensor(pixels, "pixels", f"(batch, height, width, {channels})")
    if pixels.ndim == 5:
        _require_one_frame("pixels", pixels.shape[1])
        pixels = pixels[:, 0]
    shape = tuple(pixels.shape)
    if pixels.ndim != 4 or shape[0] == 0 or shape[3] not in (channels, channels + 1):
        way = _way_to_a_batch(shape, (channels, channels + 1), "pixels", 3)
        if not way:
            _require_channels_last(shape)
            way = f"convert the image to {channels} channels"
        raise InputError(f"pixels: expected (batch, height, width, {channels}) in 0..1, got {shape}: {way}")
    if not pixels.is_floating_point():
        raise InputError(f"pixels: expected floats in 0..1, got {pixels.dtype}: divide by the largest possible value")
    _require_one_cell(pixels, factor)
    low, high = _check_finite(pixels, "pixels", "check what made the image")
    if low < _LEAST or high > _MOST:
        warn("pixels", f"expected values in 0..1, got {low:.4g} to {high:.4g}: {_scaling(low, high)}")
    if shape[3] > channels:
        warn("pixels", f"expected {channels} channels, got {shape[3]}: the last, alpha, is left out")
    return pixels[..., :channels]


def _way_to_a_batch(shape: tuple[int, ...], channels: tuple[int, ...], name: str, axis: int) -> str:
    """What to do where the batch's axis is missing, or where nothing is in it; no text where neither is so.

    `channels`: the numbers of them that will do. `axis`: where they belong in a batch.
    """
    if len(shape) == 4 and 0 in shape:
        return "pass at least one, the batch is empty" if shape[0] == 0 else "pass one of at least one cell"
    if 0 in shape or len(shape) > 3:
        return ""
    if len(shape) < 3:
        return "axes are missing, add them"
    if shape[axis - 1] in channels:
        return f"the batch axis is missing, add it by {name}[None]"
    if axis == 3 and shape[0] in channels:
        return f"the batch axis is missing and the channels are first, pass {name}.movedim(0, -1)[None]"
    if axis == 1:
        return f"the batch axis is missing, add it by {name}[None], and use the VAE that belongs to the model"
    return f"convert the image to {channels[0]} channels and add the batch axis, by {name}[None]"


def _scaling(low: float, high: float) -> str:
    """What probably puts pixels into 0..1."""
    if low < _LEAST and max(-low, high) <= _MOST:
        return "for values in -1..1 pass (pixels + 1) / 2"
    return "for values in 0..255 pass pixels / 255" if high > _BYTES and low >= _LEAST else "scale them"


def _require_channels_last(shape: tuple[int, ...]) -> None:
    if len(shape) == 4 and shape[1] <= 4 < min(shape[2:]):
        raise InputError(f"pixels: expected channels last, (batch, height, width, C), got {shape}: movedim(1, -1)")


def _require_one_cell(pixels: Tensor, factor: int) -> None:
    height, width = pixels.shape[1:3]
    _require_channels_last(tuple(pixels.shape))
    if min(height, width) < factor:
        raise InputError(
            f"pixels: expected at least {factor} x {factor}, one latent cell, got {width} x {height}: enlarge the image"
        )


def _require_one_frame(what: str, frames: int) -> None:
    if frames == 1:
        return
    if not frames:
        raise InputError(f"{what}: expected a single frame, got a video without frames: pass one")
    way = "pass one frame" if what == "latents" else "pass one at a time"
    raise InputError(
        f"{what}: expected a single frame, got a video of {frames} frames: this VAE is one of single images; {way}"
    )


def _require_tensor(x: Any, what: str, shape: str) -> Tensor:
    """x, with numbers of at least 16 bits."""
    if not isinstance(x, Tensor):
        found = "nothing" if x is None else type(x).__name__
        raise InputError(f"{what}: expected a tensor {shape}, got {found}: connect or pass what makes them")
    if x.is_complex() or x.is_meta or x.layout != torch.strided:
        kind = "meta device" if x.is_meta else str(x.layout if x.layout != torch.strided else x.dtype)
        raise InputError(f"{what}: expected dense numbers {shape}, got {kind}: compute or convert them first")
    return widened(x)


def widened(x: Tensor) -> Tensor:
    """Numbers of 8 bits as float32, which is exact; PyTorch computes nothing with them."""
    return x.float() if x.is_floating_point() and x.dtype.itemsize == 1 else x


def _check_finite(x: Tensor, what: str, remedy: str) -> tuple[float, float]:
    """The smallest and the largest value, which is also all that it takes to see NaN: one pass, waited for once."""
    lows, highs = zip(*(torch.aminmax(item.detach()) for item in x), strict=True)
    ends = torch.stack([torch.stack(lows), torch.stack(highs)]).tolist()
    for index, pair in enumerate(zip(*ends, strict=True)):
        if not all(map(math.isfinite, pair)):
            kind = "NaN" if any(map(math.isnan, pair)) else "infinity"
            raise InputError(f"{what}: expected finite numbers, got {kind} in item {index} of {len(x)}: {remedy}")
    return min(ends[0]), max(ends[1])


def crop_centre(pixels: Tensor, factor: int) -> Tensor:
    """Cut both sides of (B, H, W, C) to multiples of `factor`, keeping the middle, as ComfyUI does.

    InputError where nothing would be left.
    """
    _require_one_cell(pixels, factor)
    height, width = pixels.shape[1:3]
    h, w = height // factor * factor, width // factor * factor
    top, left = (height % factor) // 2, (width % factor) // 2
    return pixels[:, top : top + h, left : left + w]


def cropped(pixels: Tensor, factor: int) -> Tensor:
    """`crop_centre`, with a note where something is cut off."""
    whole = crop_centre(pixels, factor)
    (height, width), (h, w) = pixels.shape[1:3], whole.shape[1:3]
    if (h, w) != (height, width):
        tell("pixels", [f"{width} x {height} are cropped to {w} x {h}, whole cells of {factor} pixels"])
    return whole


def cells(pixels: int, factor: int, what: str = "tile_size") -> int:
    """Whole latent cells in so many pixels: at least 1 for a tile, 0 for an overlap."""
    if pixels < (factor if what == "tile_size" else 0):
        least = factor if what == "tile_size" else 0
        raise InputError(f"{what}: expected at least {least} pixels, got {pixels}: make it larger")
    return pixels // factor
