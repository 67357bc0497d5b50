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

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from .config import Config
from .hints import number
from .tiny.config import TinyConfig
from .wan.config import WanConfig


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
    found = one_spelling(hints) if isinstance(config, TinyConfig) else dict(hints)
    if wanted is not None:
        if wanted not in formats_for(config):
            raise InputError(
                f"latent_format: expected one of {', '.join(formats_for(config))} for latents of "
                f"{config.latent_channels} channels, got {wanted!r}: choose one of these"
            )
        found = {name: text for name, text in found.items() if name not in SPELLINGS.values()}
        found["latent_format"] = wanted
    if not isinstance(config, TinyConfig):  # its latents are raw; what its diffusion models do is told, not done
        one = LATENT_FORMATS[wanted or "raw"]
        if one.scale != 1:
            found |= {"scaling_factor": repr(one.scale), "shift_factor": repr(one.shift)}
        return config, found
    told = found.get("latent_format")
    if not found.keys().isdisjoint(SPELLINGS.values()):
        scale, shift = number(found, "vae_scale", 1.0), number(found, "vae_shift", 0.0)
        name = told if told in formats_for(config) else None
        return replace(config, scaling_factor=scale, shift_factor=shift, latent_format=name), found
    name = told if told in formats_for(config) else None
    if told is None:
        name = _named(config, found, files)
    if name is None:
        return config, found
    one = LATENT_FORMATS[name]
    found |= {"latent_format": name, "vae_scale": repr(one.scale), "vae_shift": repr(one.shift)}
    return replace(config, scaling_factor=one.scale, shift_factor=one.shift, latent_format=name), found


def one_spelling(hints: Mapping[str, str]) -> dict[str, str]:
    """Hints on a tiny VAE with `vae_scale` and `vae_shift` for a config.json's `scaling_factor` and `shift_factor`.

    Where these tell nothing, or a header of ours says what is known, they are left out.
    """
    found = {name: text for name, text in hints.items() if name not in SPELLINGS}
    if found.keys().isdisjoint(("latent_format", *SPELLINGS.values())) and _tells(hints):
        given = {ours: hints.get(theirs, "None") for theirs, ours in SPELLINGS.items()}
        found |= {name: text for name, text in given.items() if text != "None"}
    return found


def _tells(hints: Mapping[str, str]) -> bool:
    try:
        return (number(hints, "scaling_factor", 1.0), number(hints, "shift_factor", 0.0)) != (1.0, 0.0)
    except ValueError:
        return True  # something, and the family says that it is no number


def tiny_hints(told: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """What files tell of a tiny VAE together with what its user says, `given`, which counts more."""
    found, more = one_spelling(told), one_spelling(given)
    if not more.keys().isdisjoint(SPELLINGS.values()):
        found.pop("latent_format", None)
    if "latent_format" in more:
        found = {name: text for name, text in found.items() if name not in SPELLINGS.values()}
    return found | more


def pipeline_numbers(config: TinyConfig) -> tuple[float, float]:
    """scaling_factor and shift_factor of a config.json, as the published ones have them where the format is known.

    diffusers' pipelines hand the network x / scaling_factor + shift_factor, x being the diffusion model's latents,
    which such a network works on.
    """
    one = LATENT_FORMATS.get(config.latent_format or "")
    numbers = (config.scaling_factor, config.shift_factor)
    return (1.0, 0.0) if one is not None and numbers == (one.scale, one.shift) else numbers


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
