"""The configuration of a tiny autoencoder, read from names, shapes and hints."""

from __future__ import annotations

import re

from ..family import Shapes
from ..hints import Hints, flag, number, word
from .config import TinyConfig
from .latents import one_spelling

UPSAMPLE_MODES = ("nearest", "bilinear", "bicubic", "nearest-exact")
"""Of torch's Upsample, those for pictures."""


def _tiny_layers(shapes: Shapes, half: str) -> list[str]:
    """The kind of each numbered layer of half a tiny model: conv, block, or none (activation, upsampling)."""
    numbers = [int(m[1]) for m in (re.match(rf"{half}\.layers\.(\d{{1,4}})\.", key) for key in shapes) if m]
    kinds: list[str] = []
    for position in range(max(numbers, default=-1) + 1):
        layer = f"{half}.layers.{position}"
        block = f"{layer}.conv.0.weight" in shapes
        kinds.append("block" if block else "conv" if f"{layer}.weight" in shapes else "none")
    return kinds


def _stages(kinds: list[str]) -> tuple[int, ...]:
    """Blocks between consecutive convolutions."""
    stages: list[int] = []
    for kind in kinds:
        if kind == "conv":
            stages.append(0)
        elif kind == "block":
            stages[-1] += 1
    return tuple(stages[:-1])


def infer_tiny(shapes: Shapes, hints: Hints) -> TinyConfig:
    """Stages from the order of convolutions and blocks, widths from the convolutions."""
    encoder_kinds, decoder_kinds = _tiny_layers(shapes, "encoder"), _tiny_layers(shapes, "decoder")
    if "block" not in encoder_kinds + decoder_kinds:
        raise ValueError("found no residual block")
    convs = {
        half: [shapes[f"{half}.layers.{number}.weight"] for number, kind in enumerate(kinds) if kind == "conv"]
        for half, kinds in (("encoder", encoder_kinds), ("decoder", decoder_kinds))
    }
    encoder, decoder = convs["encoder"], convs["decoder"]
    defaults = TinyConfig()
    told = one_spelling(hints)
    return TinyConfig(
        latent_channels=decoder[0][1] if decoder else encoder[-1][0],
        in_channels=encoder[0][1] if encoder else 3,
        out_channels=decoder[-1][0] if decoder else 3,
        encoder_block_out_channels=tuple(shape[0] for shape in encoder[:-1]) if encoder else None,
        decoder_block_out_channels=tuple(shape[0] for shape in decoder[:-1]) if decoder else None,
        num_encoder_blocks=_stages(encoder_kinds) if encoder else defaults.num_encoder_blocks,
        num_decoder_blocks=_stages(decoder_kinds) if decoder else defaults.num_decoder_blocks,
        midblock_gn=any(".pool." in key for key in shapes),
        strided_stem=encoder_kinds[:2] == ["conv", "none"],
        scaling_factor=number(told, "vae_scale", 1.0),
        shift_factor=number(told, "vae_shift", 0.0),
        act_fn=word(hints, "act_fn", defaults.act_fn),
        upsample_fn=word(hints, "upsample_fn", defaults.upsample_fn),
        upsampling_scaling_factor=number(hints, "upsampling_scaling_factor", defaults.upsampling_scaling_factor),
        latent_magnitude=number(hints, "latent_magnitude", 3.0),
        latent_shift=number(hints, "latent_shift", 0.5),
        force_upcast=flag(hints, "force_upcast"),
    )
