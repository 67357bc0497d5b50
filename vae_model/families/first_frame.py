"""The first-frame rule of clips, said once: the first frame of latents is one picture, each further one is several."""

from __future__ import annotations


def image_frames(frames: int, factor: int) -> int:
    """Frames that so many frames of latents become, `factor` for each behind the first."""
    return 1 + (frames - 1) * factor


def latent_frames(frames: int, factor: int) -> int:
    """Frames of latents that so many frames become; what is left behind the last whole group becomes none."""
    return 1 + (frames - 1) // factor
