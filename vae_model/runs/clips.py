"""Clips as the runs see them: their frames one behind the other along the first axis, as many as belong together."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..notes import warn


def frames_of_latents(samples: Any, has_frames: bool) -> tuple[Any, int]:
    """Latents of clips (B, c, T, h, w) as (B * T, c, h, w), and T. Of pictures as they are, and 1."""
    if not has_frames or not isinstance(samples, Tensor) or samples.ndim != 5 or samples.shape[2] < 2:
        return samples, 1
    return samples.transpose(1, 2).flatten(0, 1), samples.shape[2]


def frames_of_pixels(pixels: Any, has_frames: bool, as_video: bool, factor: int) -> tuple[Any, int]:
    """Clips (B, F, H, W, C) as (B * F', H, W, C), and F'; with `as_video` a batch (F, H, W, C) is one clip.

    Behind the first frame they belong together by `factor`; those too many at the end are left out, with a note.
    """
    if not has_frames or not isinstance(pixels, Tensor):
        return pixels, 1
    if pixels.ndim == 4 and as_video:
        pixels = pixels[None]
    if pixels.ndim != 5 or pixels.shape[1] < 2:
        return pixels, 1
    frames = pixels.shape[1]
    used = 1 + (frames - 1) // factor * factor
    if used < frames:
        last = f"the last {frames - used} are" if frames - used > 1 else "the last one is"
        warn("pixels", f"expected 1 + {factor} * n frames, got {frames}: {last} left out")
    return pixels[:, :used].flatten(0, 1), used
