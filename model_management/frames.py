"""Single frames of the host's video VAEs: which of them the engine runs, and the host's shapes of them.

To such a VAE a batch of images is one video, unless `not_video` says otherwise; latents are (B, c, T, h, w).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..vae_model.families.table import family_knowing

VIDEO = "expected a single frame, got a video of {}"


def runs_frames(vae: Any) -> bool:
    """Whether this is a VAE of videos that the engine may know as one of single frames."""
    family = family_knowing(vae.first_stage_model)
    return getattr(vae, "latent_dim", 2) == 3 and family is not None and family.has_frames


def one_frame(z: Any) -> Any:
    """(B, c, 1, h, w) as (B, c, h, w); anything else as it is."""
    return z[:, :, 0] if getattr(z, "ndim", 0) == 5 and z.shape[2] == 1 else z


def images_like(vae: Any, z: Any, images: Tensor) -> Tensor:
    """Images (B, H, W, C) decoded from z as the host returns them: with an axis of frames where z has one."""
    return images[:, None] if z.ndim == 5 and runs_frames(vae) else images


def latents_like(vae: Any, z: Tensor) -> Tensor:
    """Latents (B, c, h, w) as the host returns them: with an axis of frames from a VAE of videos."""
    return z[:, :, None] if runs_frames(vae) else z


def video_obstacle(vae: Any, pixels: Any, not_video: bool | None) -> str | None:
    """Why a batch of images is not to be run image by image, None where it may be."""
    as_images = getattr(vae, "not_video", False) if not_video is None else not_video
    if as_images or len(pixels) == 1 or not runs_frames(vae):
        return None
    return VIDEO.format(len(pixels))


def image_shape(vae: Any, shape: Any) -> tuple[int, int] | None:
    """Height and width in the shape of a batch of images or single frames, None for other shapes."""
    if len(shape) == 5 and runs_frames(vae) and int(shape[2]) == 1:
        return int(shape[3]), int(shape[4])
    return (int(shape[2]), int(shape[3])) if len(shape) == 4 and getattr(vae, "latent_dim", 2) == 2 else None
