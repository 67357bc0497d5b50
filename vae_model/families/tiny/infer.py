"""The configuration of a tiny autoencoder, read from names, shapes and hints.

Whose latents it works on is told by its user, its file, a config.json, or its name. See `latent_formats` for what the
numbers mean and in which order these count.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..hints import Hints, Shapes, flag, number, word
from ..latent_formats import LATENT_FORMATS, SPELLINGS, TINY_FORMATS, formats_of, with_wanted
from .config import TinyConfig


def _half(shapes: Shapes, half: str) -> tuple[list[tuple[int, ...]], list[int], list[int]]:
    """Of half a tiny model: the shapes of its convolutions, the blocks behind each, the numbers of all its layers."""
    numbers = {int(m[1]) for m in (re.match(rf"{half}\.layers\.(\d{{1,4}})\.", key) for key in shapes) if m}
    convs, blocks = list[tuple[int, ...]](), list[int]()
    for position in sorted(numbers):  # the others are activations and upsamples
        layer = f"{half}.layers.{position}"
        if f"{layer}.conv.0.weight" in shapes:
            blocks[-1] += 1
        elif f"{layer}.weight" in shapes:
            convs.append(shapes[f"{layer}.weight"])
            blocks.append(0)
    return convs, blocks, sorted(numbers)


def infer_tiny(shapes: Shapes, hints: Hints) -> TinyConfig:
    """Stages from the order of convolutions and blocks, widths from the convolutions."""
    encoder, encoder_blocks, numbers = _half(shapes, "encoder")
    decoder, decoder_blocks, _ = _half(shapes, "decoder")
    if not any(encoder_blocks + decoder_blocks):
        raise ValueError("found no residual block")
    defaults = TinyConfig()
    told = one_spelling(hints)
    return TinyConfig(
        latent_channels=decoder[0][1] if decoder else encoder[-1][0],
        in_channels=encoder[0][1] if encoder else 3,
        out_channels=decoder[-1][0] if decoder else 3,
        encoder_block_out_channels=tuple(shape[0] for shape in encoder[:-1]) if encoder else None,
        decoder_block_out_channels=tuple(shape[0] for shape in decoder[:-1]) if decoder else None,
        num_encoder_blocks=tuple(encoder_blocks[:-1]) if encoder else defaults.num_encoder_blocks,
        num_decoder_blocks=tuple(decoder_blocks[:-1]) if decoder else defaults.num_decoder_blocks,
        midblock_gn=any(".pool." in key for key in shapes),
        strided_stem=len(numbers) > 1 and numbers[0] == 0 and numbers[1] > 1,
        scaling_factor=number(told, "vae_scale", 1.0),
        shift_factor=number(told, "vae_shift", 0.0),
        act_fn=word(hints, "act_fn", defaults.act_fn),
        upsample_fn=word(hints, "upsample_fn", defaults.upsample_fn),
        upsampling_scaling_factor=number(hints, "upsampling_scaling_factor", defaults.upsampling_scaling_factor),
        latent_magnitude=number(hints, "latent_magnitude", 3.0),
        latent_shift=number(hints, "latent_shift", 0.5),
        force_upcast=flag(hints, "force_upcast"),
    )


_NAME = re.compile(rf"(?<![a-z0-9])({'|'.join(TINY_FORMATS)})(?![a-z0-9])")
_GENERIC = re.compile(r"(diffusion_)?(pytorch_)?model([.-].*)?|(vae_)?(en|de)coder")
_SNAPSHOT = re.compile(r"[0-9a-f]{40}")
"""The folder of one revision in a cache of downloads, two levels below the one with the name."""


def settle(
    config: TinyConfig, hints: Mapping[str, str], files: Sequence[str], wanted: str | None = None
) -> tuple[TinyConfig, dict[str, str]]:
    """The configuration with scale and shift, where they can be told; all else is as in `Family.settle`."""
    formats = formats_of(config.latent_channels)
    found = with_wanted(one_spelling(hints), wanted, formats, config.latent_channels)
    told = found.get("latent_format")
    name = told if told in formats else None
    if not found.keys().isdisjoint(SPELLINGS.values()):
        scale, shift = number(found, "vae_scale", 1.0), number(found, "vae_shift", 0.0)
        return replace(config, scaling_factor=scale, shift_factor=shift, latent_format=name), found
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


def join_hints(told: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """What files tell of a tiny VAE together with what its user says, `given`, which counts more."""
    found, more = one_spelling(told), one_spelling(given)
    if not more.keys().isdisjoint(SPELLINGS.values()):
        found.pop("latent_format", None)
    if "latent_format" in more:
        found = {name: text for name, text in found.items() if name not in SPELLINGS.values()}
    return found | more


def pipeline_numbers(latent_format: str | None, scale: float, shift: float) -> tuple[float, float]:
    """scaling_factor and shift_factor of a config.json, as the published ones have them where the format is known.

    diffusers' pipelines hand the network x / scaling_factor + shift_factor, x being the diffusion model's latents,
    which such a network works on.
    """
    one = LATENT_FORMATS.get(latent_format or "")
    return (1.0, 0.0) if one is not None and (scale, shift) == (one.scale, one.shift) else (scale, shift)


def _named(config: TinyConfig, hints: Mapping[str, str], files: Sequence[str]) -> str | None:
    """The format that a config.json's origin, or else the names of all files, say; None where they disagree."""
    origin = _NAME.search(hints.get("_name_or_path", "").replace("\\", "/").rsplit("/", 1)[-1].lower())
    said = {TINY_FORMATS[origin[1]]} if origin else {_format_of(file) for file in files}
    return said.pop() if len(said) == 1 and said <= {*formats_of(config.latent_channels)} else None


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
