"""`exact-vae decode`, one file: pictures, clips as videos, folders of frames or arrays; written as they come."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import Tensor

from ..vae_model.errors import InputError
from ..vae_model.families.first_frame import image_frames
from ..vae_model.families.table import FAMILIES
from ..vae_model.files.clips import CLIP_WRITERS, clip_target, clip_writer, require_replaceable
from ..vae_model.files.images import SUFFIXES, write_image
from ..vae_model.files.latents import RATE_KEY, are_raw, latent_metadata
from ..vae_model.files.video import VIDEOS, Video, described, parse_rate, require_video
from ..vae_model.vae import VAE
from .inputs import clip_frames, read_input
from .jobs import Progress, Result


def require_ending(what: str, ending: str, given: str) -> None:
    """InputError, before any work, for an ending, such as ".png", of nothing that images are written to."""
    if ending not in SUFFIXES and ending not in CLIP_WRITERS:
        known = ", ".join(dict.fromkeys((*SUFFIXES, *CLIP_WRITERS)))
        raise InputError(f"{what}: expected a name ending in {known}, got {given!r}: change the ending")


def is_there(source: Path, target: Path) -> bool:
    """Whether the output, or the first picture of a batch, or the folder of a clip's frames exists."""
    if clip_frames(source) > 1:
        return clip_target(target).exists()
    return target.exists() or target.with_name(f"{target.stem}_00001{target.suffix}").exists()


def video_options(options: argparse.Namespace, ending: str) -> tuple[Video, bool]:
    """How video files are to be written, and whether their rate was said; InputError for what `ending` cannot be."""
    said = options.fps is not None
    video = Video(parse_rate(options.fps) if said else Video().rate, options.chroma, options.lossless)
    if ending in VIDEOS:
        require_video(Path(f"clip{ending}"), video)
    elif said or video.lossless or video.chroma != Video().chroma:
        raise InputError(
            f"decode: expected a video file with --fps, --chroma and --lossless, got {ending}: "
            "name one with -o, such as clip.mp4, or leave them out"
        )
    return video, said


def decode_file(
    vae: VAE,
    source: Path,
    target: Path,
    *,
    method: str,
    progress: Progress,
    video: tuple[Video, bool] = (Video(), False),
    **run: Any,
) -> Result:
    """Decode a latent; a clip's frames are written while later ones are computed.

    Args:    video: as `video_options` gives it.
    """
    z = read_input(source, "decode")
    frames = z.shape[2] if z.ndim == 5 else 1
    if frames > 1 and vae.latent_dim == 2:
        raise InputError(
            f"decode: expected a latent of pictures for this VAE, got {source} of a clip, {frames} frames of latents: "
            "give the VAE of the model that made it with --vae"
        )
    if frames == 1:
        result = write_decoded(vae, source, vae.decode(z, method, progress=progress, **run), target, video=video)
    else:
        made, why = _as_stored(vae, source, *video)
        result = _told(_decode_clips(vae, z, target, method, progress, made, run), target, made, why)
    if not are_raw(source) and knows_raw(vae):
        result.notes.append("these latents are not raw but a tiny VAE's own: encode again with --latent-format")
    elif are_raw(source) and not knows_raw(vae):
        result.notes.append("raw latents for a VAE whose scale is not known: say --latent-format")
    return result


def write_decoded(
    vae: VAE, source: Path, images: Tensor, target: Path, *, video: tuple[Video, bool] = (Video(), False)
) -> Result:
    """What a latent file became, as `write_images` does, videos as `video_options` has them."""
    made, why = _as_stored(vae, source, *video)
    return _told(write_images(images, target, made), target, made, why)


def _told(result: Result, target: Path, video: Video, why: str) -> Result:
    """With a note on what a video is."""
    if target.suffix.lower() in VIDEOS and result.outputs[0].suffix == target.suffix and len(result.shape) > 3:
        result.notes.append(described(target, result.shape[-4:], video) + why)
    return result


def knows_raw(vae: VAE) -> bool:
    """Whether latents are raw by what its file and name tell."""
    return FAMILIES[vae.loaded.family].knows_raw(vae.loaded.config, vae.loaded.hints)


def _as_stored(vae: VAE, source: Path, video: Video, said: bool) -> tuple[Video, str]:
    """With the rate of what was encoded, else of what such models make, where none was said; and that in words."""
    if said:
        return video, ""
    stored = latent_metadata(source).get(RATE_KEY)
    try:
        return video._replace(rate=Fraction(stored or "")), ", as what was encoded"
    except (ValueError, ZeroDivisionError):
        rate = Fraction(FAMILIES[vae.loaded.family].frame_rate)
        return video._replace(rate=rate), ", as such models make clips (--fps for another)"


def _decode_clips(
    vae: VAE, z: Tensor, target: Path, method: str, progress: Progress, video: Video, run: dict[str, Any]
) -> Result:
    frames, f = image_frames(z.shape[2], vae.time_factor), vae.upscale_ratio
    shape = (frames, z.shape[3] * f, z.shape[4] * f, vae.output_channels)
    targets = _numbered(target, len(z))
    progress.frames = frames * len(z)
    for one in targets:
        if clip_target(one) != one:
            require_replaceable(one)
    for number, (clip, one) in enumerate(zip(z.split(1), targets, strict=True)):
        told = progress.part(number, len(z))
        if method == "exact":
            groups: Iterable[Tensor] = vae.decode_frames(clip, progress=told, **run)
        else:
            groups = vae.decode(clip, method, progress=told, **run)
        with clip_writer(one, video)(one, shape) as take:
            for group in groups:
                take(group)
    return Result([clip_target(one) for one in targets], (len(z), *shape))


def write_images(images: Tensor, target: Path, video: Video | None = None) -> Result:
    """Pictures (B, H, W, C), in a video its frames, or clips (B, F, H, W, C), whose single frames are pictures."""
    if images.ndim == 5 and images.shape[1] > 1:
        paths = _numbered(target, len(images))
        for clip, path in zip(images, paths, strict=True):
            with clip_writer(path, video)(path, tuple(clip.shape)) as take:
                take(clip)
        return Result([clip_target(path) for path in paths], tuple(images.shape))
    images = images.reshape(-1, *images.shape[-3:])
    if target.suffix.lower() not in SUFFIXES:
        with clip_writer(target, video)(target, tuple(images.shape)) as take:
            take(images)
        return Result([target], tuple(images.shape))
    paths = _numbered(target, len(images))
    for image, path in zip(images, paths, strict=True):
        write_image(image, path)
    return Result(paths, tuple(images.shape))


def _numbered(target: Path, count: int) -> list[Path]:
    """One name for each, with numbers where there are several."""
    if count == 1:
        return [target]
    return [target.with_name(f"{target.stem}_{number + 1:05d}{target.suffix}") for number in range(count)]
