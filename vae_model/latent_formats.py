"""Whose latents: between which numbers and an autoencoder's raw latents a diffusion model, or a tiny VAE, converts.

A tiny VAE works on (raw - shift) * scale, and most files of one do not hold these two numbers. They are told, in this
order, by who loads it, by the file, or by its name: `taesdxl_decoder.safetensors`, the folder `taesd3`. A name is a
hint for these numbers alone, never for the network.
Source of the numbers: the latent formats of the diffusion models, as ComfyUI and diffusers have them, read as facts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from .config import Config, TinyConfig, WanConfig
from .errors import InputError
from .hints import number


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

_NAME = re.compile(rf"(?<![a-z0-9])({'|'.join(TINY_FORMATS)})(?![a-z0-9])")
_GENERIC = re.compile(r"(diffusion_)?(pytorch_)?model([.-].*)?|(vae_)?(en|de)coder")
_SNAPSHOT = re.compile(r"[0-9a-f]{40}")
"""The folder of one revision in a cache of downloads, two levels below the one with the name."""


def formats_for(config: Config) -> list[str]:
    """The names that such latents may have."""
    channels = () if isinstance(config, WanConfig) else (config.latent_channels,)  # Wan's have numbers for each channel
    return [name for name, one in LATENT_FORMATS.items() if not one.channels or {*channels} & {*one.channels}]


def settle(
    config: Config, hints: Mapping[str, str], files: Sequence[str], wanted: str | None = None
) -> tuple[Config, dict[str, str]]:
    """The configuration with the numbers of its latents, where they can be told, and the hints with what was found.

    Args:    files: names of the files, for what they say. wanted: what the caller says, a name in LATENT_FORMATS.
    Raises:  InputError for a name that is not there, or whose latents have other channels.
    """
    found = dict(hints)
    if wanted is not None:
        if wanted not in formats_for(config):
            raise InputError(
                f"latent_format: expected one of {', '.join(formats_for(config))} for latents of "
                f"{config.latent_channels} channels, got {wanted!r}: choose one of these"
            )
        found = {name: text for name, text in hints.items() if name not in ("vae_scale", "vae_shift")}
        found["latent_format"] = wanted
    if not isinstance(config, TinyConfig):  # its latents are raw; what its diffusion models do is told, not done
        one = LATENT_FORMATS[wanted or "raw"]
        if one.scale != 1:
            found |= {"scaling_factor": repr(one.scale), "shift_factor": repr(one.shift)}
        return config, found
    told = found.get("latent_format")
    if "vae_scale" in found or "vae_shift" in found:
        return replace(config, latent_format=told if told in formats_for(config) else None), found
    name = told if told in formats_for(config) else None
    if told is None:
        name = _named(config, found, files)
    if name is None:
        return config, found
    scale, shift = _numbers(LATENT_FORMATS[name], found)
    found |= {"latent_format": name, "vae_scale": repr(scale), "vae_shift": repr(shift)}
    return replace(config, scaling_factor=scale, shift_factor=shift, latent_format=name), found


def _numbers(one: LatentFormat, hints: Mapping[str, str]) -> tuple[float, float]:
    """Of a network that diffusers hands x / scaling_factor + shift_factor, x being the diffusion model's latents.

    All that are published have 1 and 0 there.
    """
    try:
        factor, offset = number(hints, "scaling_factor", 1.0) or 1.0, number(hints, "shift_factor", 0.0)
    except ValueError:
        factor, offset = 1.0, 0.0
    return one.scale / factor, one.shift - offset * factor / one.scale


def pipeline_numbers(config: TinyConfig) -> tuple[float, float]:
    """scaling_factor and shift_factor of a config.json: the way back from `_numbers`, or as they are, if not known."""
    if config.latent_format is None:
        return config.scaling_factor, config.shift_factor
    one = LATENT_FORMATS[config.latent_format]
    return one.scale / config.scaling_factor, (one.shift - config.shift_factor) * config.scaling_factor


def _named(config: Config, hints: Mapping[str, str], files: Sequence[str]) -> str | None:
    """The format that a config.json's origin, or else the names of all files, say; None where they disagree."""
    origin = _NAME.search(hints.get("_name_or_path", "").replace("\\", "/").rsplit("/", 1)[-1].lower())
    said = {TINY_FORMATS[origin[1]]} if origin else {_format_of(file) for file in files}
    return said.pop() if len(said) == 1 and said <= {*formats_for(config)} else None


def _format_of(file: str) -> str | None:
    """By the file's name, or the folder's where every file of its kind is called the same."""
    path = Path(os.path.abspath(file))
    name = path.stem.lower()
    if _GENERIC.fullmatch(name):
        parent = path.parent
        cached = _SNAPSHOT.fullmatch(parent.name) and len(parent.parents) > 2
        name = (parent.parents[1] if cached else parent).name.lower()
    match = _NAME.search(name)
    return TINY_FORMATS[match[1]] if match else None


def same_numbers(scale: float, shift: float, channels: int) -> str | None:
    """The format that has just these numbers, "raw" for 1 and 0."""
    for name, one in LATENT_FORMATS.items():
        if (one.scale, one.shift) == (scale, shift) and (not one.channels or channels in one.channels):
            return name
    return None
