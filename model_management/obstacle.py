"""What the engine runs of a VAE of the host, and why that must else run by its own method.

To a video VAE a batch of images is one video, unless `not_video` says otherwise; latents are (B, c, T, h, w).
"""

from __future__ import annotations

from typing import Any

from ..vae_model.exact.layer import UnsupportedModule
from ..vae_model.exact.program import Program
from ..vae_model.families.coder import Coder
from ..vae_model.families.table import family_knowing
from ..vae_model.runs.run import coder_of

BLEND = "blended tiles were asked for"
OPTIONS = "called with options that only the VAE itself knows"


def factor_of(program: Program, what: str) -> int:
    """Pixels along one side of a latent cell, as the modules have it."""
    side = 1024
    there = program.extent(side, side).height
    return there // side if what == "decode" else side // there


def time_factor_of(program: Program, what: str = "encode") -> int:
    """Frames of a clip per frame of its latents behind the first one."""
    frames = 128
    there = program.extent(1024, 1024, 1 + frames).frames - 1
    return there // frames if what == "decode" else frames // there


def correct_factors(vae: Any) -> None:
    """Set the factors that the host got wrong: the core leaves 8 where it packs cells, and crops by them."""
    for what, name in (("decode", "upscale_ratio"), ("encode", "downscale_ratio")):
        if type(getattr(vae, name, None)) is not int:
            continue
        try:
            setattr(vae, name, factor_of(coder_of(vae, what).program, what))
        except UnsupportedModule:
            continue


def coder_for(vae: Any, what: str, x: Any) -> Coder:
    """What runs x; UnsupportedModule with the reason why the VAE's own method must "decode" or "encode" it."""
    if getattr(vae, "handles_tiling", False):
        raise UnsupportedModule("the VAE does its own tiling")
    dimensions, axes = getattr(vae, "latent_dim", 2), int(getattr(x, "ndim", 0))
    if (dimensions != 2 and not runs_frames(vae)) or getattr(vae, "extra_1d_channel", None) is not None:
        raise UnsupportedModule(f"latents of {dimensions} dimensions (video, audio)")
    if axes != 4:
        raise UnsupportedModule(f"expected a batch of 4 dimensions, got {axes}")
    coder = coder_of(vae, what)
    wanted = coder.program.in_channels
    channels = int(x.shape[1 if what == "decode" else 3])
    if what == "encode":  # of an image once the VAE has cut off or filled in what it does not want
        fills = getattr(vae, "pad_channel_value", None) is not None
        channels = vae.output_channels if fills else min(channels, vae.output_channels)
    if channels != wanted:
        raise UnsupportedModule(f"expected {wanted} channels, got {channels}")
    return coder


def runs_frames(vae: Any) -> bool:
    """Whether this is a VAE of videos that the engine may know."""
    family = family_knowing(vae.first_stage_model)
    return getattr(vae, "latent_dim", 2) == 3 and family is not None and family.has_frames
