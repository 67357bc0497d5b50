"""Whose latents: between which numbers and an autoencoder's raw latents a diffusion model, or a tiny VAE, converts.

A tiny VAE works on (raw - shift) * scale, and most files of one do not hold these two numbers. They are told, in this
order, by who loads it, by the file, by the config.json beside it, or by its name: `taesdxl_decoder.safetensors`, the
folder `taesd3`. A name is a hint for these numbers alone, never for the network.

`scaling_factor` and `shift_factor` mean the same in a config.json, in `config=` and as arguments of AutoencoderTiny:
the scale and the shift above. 1 and 0, the arguments' defaults, tell nothing, for all that are published have these
whatever they work on; any other pair is told. "raw" is 1 and 0 by somebody's word: the network's latents are raw ones.
Source of the numbers: the latent formats of the diffusion models, as ComfyUI and diffusers have them, read as facts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..errors import InputError
from ..errors.listed import nearest


class LatentFormat(NamedTuple):
    """(raw latent - shift) * scale is what these diffusion models work on, and tiny VAEs that are named for them."""

    models: str
    channels: tuple[int, ...]
    """Of the latents that users hold; none: any."""
    scale: float
    shift: float = 0.0


LATENT_FORMATS: dict[str, LatentFormat] = {
    "sd": LatentFormat("Stable Diffusion 1 and 2", (4,), 0.18215),
    "sdxl": LatentFormat("SDXL", (4,), 0.13025),
    "sd3": LatentFormat("Stable Diffusion 3", (16,), 1.5305, 0.0609),
    "flux": LatentFormat("Flux.1 and relatives", (16,), 0.3611, 0.1159),
    "flux2": LatentFormat("Flux.2", (32, 128), 1.0),
    "raw": LatentFormat("raw latents", (), 1.0),
}
"""What `latent_format` may name."""

TINY_FORMATS = {"taesd": "sd", "taesdxl": "sdxl", "taesd3": "sd3", "taef1": "flux", "taef2": "flux2"}
"""The published tiny VAEs, as their files are called everywhere, and whose latents they are for."""

SPELLINGS = {"scaling_factor": "vae_scale", "shift_factor": "vae_shift"}
"""The two numbers in a config.json and in a header of ours."""


class Users(NamedTuple):
    """Diffusion models, and between which numbers and the raw latents they convert: (latent - shift) * scale.

    Where `means` and `deviations` are given they hold one number for every channel: (latent - mean) / deviation.
    """

    models: str
    scale: float
    shift: float = 0.0
    means: tuple[float, ...] = ()
    deviations: tuple[float, ...] = ()


def users(name: str, models: str | None = None) -> Users:
    """Those of a latent format, under another name where it is given."""
    one = LATENT_FORMATS[name]
    return Users(models or one.models, one.scale, one.shift)


def formats_of(channels: int) -> list[str]:
    """The names that latents of so many channels may have."""
    return [name for name, one in LATENT_FORMATS.items() if not one.channels or channels in one.channels]


def with_wanted(hints: Mapping[str, str], wanted: str | None, known: Sequence[str], channels: int) -> dict[str, str]:
    """The hints with the format that the caller wants, one of `known`, in the place of a file's numbers."""
    if wanted is None:
        return dict(hints)
    if wanted not in known:
        near = nearest(TINY_FORMATS.get(str(wanted).lower(), wanted), known)
        raise InputError(
            f"latent_format: expected one of {', '.join(known)} for latents of {channels} channels, got {wanted!r}: "
            f"{f'{near} is probably meant' if near else 'choose one of these'}"
        )
    return {name: text for name, text in hints.items() if name not in SPELLINGS.values()} | {"latent_format": wanted}


def same_numbers(scale: float, shift: float, channels: int) -> str | None:
    """The format that has just these numbers, "raw" for 1 and 0."""
    known = (name for name in formats_of(channels) if LATENT_FORMATS[name][2:] == (scale, shift))
    return next(known, None)
