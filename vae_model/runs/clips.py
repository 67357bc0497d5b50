"""Clips as the runs see them: their frames one behind the other along the first axis, as many as belong together."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import InputError
from ..families.first_frame import image_frames, latent_frames
from ..notes import warn
from .checks import channels_are_last


def frames_of_latents(samples: Any, has_frames: bool, channels: int | None = None) -> tuple[Any, int, bool]:
    """Latents of clips (B, c, T, h, w) as (B * T, c, h, w), T, and True; of pictures as they are, 1, and False.

    `channels`: of the latents; InputError where a clip has others, or has them elsewhere.
    """
    if not has_frames or not isinstance(samples, Tensor) or samples.ndim not in (4, 5):
        return samples, 1, False
    if channels is not None and samples.shape[1] != channels:
        _refuse_latents(tuple(samples.shape), channels)
    if samples.ndim == 4:
        return samples, 1, False
    return (samples.transpose(1, 2).flatten(0, 1) if samples.shape[2] > 1 else samples), samples.shape[2], True


def _refuse_latents(shape: tuple[int, ...], channels: int) -> None:
    """InputError naming the way; none for pictures that merely have other channels, which are told elsewhere."""
    expected = f"latents: expected (batch, {channels}, frames, height, width), got {shape}:"
    if channels_are_last(shape, channels):
        raise InputError(f"{expected} the channels are last, pass samples.movedim(-1, 1)")
    if len(shape) == 4:
        if shape[0] == channels:
            raise InputError(f"{expected} the batch axis is missing, add it by samples[None]")
        return
    if shape[2] == channels:
        raise InputError(f"{expected} the frames are before the channels, pass samples.transpose(1, 2)")
    raise InputError(f"{expected} use the VAE that belongs to the model")


def frames_of_pixels(
    pixels: Any, has_frames: bool, as_video: bool, factor: int, channels: int | None = None
) -> tuple[Any, int]:
    """Clips (B, F, H, W, C) as (B * F', H, W, C), and F'; with `as_video` a batch (F, H, W, C) is one clip.

    Behind the first frame they belong together by `factor`; those too many at the end are left out, with a note. 1: all
    are used.
    `channels`: of the images; InputError where a clip has others, or has them elsewhere.
    """
    if not has_frames or not isinstance(pixels, Tensor):
        return pixels, 1
    if channels is not None and pixels.ndim in (4, 5) and pixels.shape[-1] not in (channels, channels + 1):
        _refuse_pixels(tuple(pixels.shape), channels)
    if pixels.ndim == 4 and as_video:
        pixels = pixels[None]
    if pixels.ndim != 5 or pixels.shape[1] < 2:
        return pixels, 1
    frames = pixels.shape[1]
    used = image_frames(latent_frames(frames, factor), factor)
    if used < frames:
        last = f"the last {frames - used} are" if frames - used > 1 else "the last one is"
        warn("pixels", f"expected 1 + {factor} * n frames, got {frames}: {last} left out")
    return pixels[:, :used].flatten(0, 1), used


def _refuse_pixels(shape: tuple[int, ...], channels: int) -> None:
    """InputError naming the way; none for pictures, which are told elsewhere."""
    expected = f"pixels: expected (batch, frames, height, width, {channels}) in 0..1, got {shape}:"
    if len(shape) == 5:
        axis = next((axis for axis in (1, 2) if shape[axis] in (channels, channels + 1)), None)
        way = f"convert the frames to {channels} channels" if axis is None else f"pass pixels.movedim({axis}, -1)"
        raise InputError(f"{expected} {way}")
    if shape[0] in (channels, channels + 1) and shape[1] not in (channels, channels + 1):
        raise InputError(f"{expected} the batch axis is missing, pass pixels.movedim(0, -1)[None]")
