"""The configuration of an ldm autoencoder, read from the shapes of its tensors and, where none tells, from hints.

`kl_settings` writes these: text in a safetensors header, under the names of ldm's and diffusers' arguments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from ..family import Shapes
from ..hints import HALVES, Hints, flag, number
from .config import KLConfig, LevelsConfig
from .distribution import IdentityRegularizer
from .layers import ResnetBlock


def _count(shapes: Shapes, template: str) -> int:
    """How many consecutive numbers, from 0, fill the {} of a key template."""
    number = 0
    while template.format(number) in shapes:
        number += 1
    return number


def infer_levels(shapes: Shapes, hints: Hints, half: str) -> LevelsConfig | None:
    if f"{half}.conv_in.weight" not in shapes:
        return None
    stack, resampling = ("down", "downsample") if half == "encoder" else ("up", "upsample")
    stack = f"{half}.{stack}"
    count = _count(shapes, f"{stack}.{{}}.block.0.conv1.weight")
    widths = tuple(shapes[f"{stack}.{level}.block.0.conv1.weight"][0] for level in range(count))
    blocks = _count(shapes, f"{stack}.0.block.{{}}.conv1.weight")
    attention = "vanilla" if f"{half}.mid.attn_1.q.weight" in shapes else "none"
    queries = ("q", "to_qkv")
    return LevelsConfig(
        ch=shapes["encoder.conv_in.weight"][0] if half == "encoder" else widths[0],
        widths=widths,
        num_res_blocks=blocks if half == "encoder" else blocks - 1,
        attn_levels=tuple(
            level for level in range(count) if any(f"{stack}.{level}.attn.0.{q}.weight" in shapes for q in queries)
        ),
        attn_type="linear" if f"{half}.mid.attn_1.to_qkv.weight" in shapes else attention,
        resamp_with_conv=count < 2 or any(f".{resampling}.conv." in key for key in shapes if key.startswith(stack)),
        conv_shortcut=any(".conv_shortcut." in key for key in shapes if key.startswith(stack)),
        dropout=number(hints, "dropout", 0.0, half=half),
    )


def norm_groups(hints: Hints, halves: Mapping[str, LevelsConfig]) -> dict[str, int]:
    """Of each half: the hinted number, else 32 as everywhere in the field, else the most that divides all widths."""
    widths = [width for one in halves.values() for width in (one.ch, *one.widths)]
    usual = next(groups for groups in (32, 16, 8, 4, 2, 1) if all(width % groups == 0 for width in widths))
    return {half: number(hints, "norm_num_groups", usual, half=half) for half in halves}


def infer_kl(shapes: Shapes, hints: Hints) -> KLConfig:
    """Everything from tensors but what `kl_settings` writes; encoder and decoder each on their own."""
    encoder, decoder = infer_levels(shapes, hints, "encoder"), infer_levels(shapes, hints, "decoder")
    groups = norm_groups(hints, {half: one for half, one in (("encoder", encoder), ("decoder", decoder)) if one})
    if encoder and decoder and groups["encoder"] != groups["decoder"]:
        encoder = replace(encoder, num_groups=groups["encoder"])
    moments = shapes["encoder.conv_out.weight"][0] if encoder else 0
    alone = 1 + flag(hints, "double_z", True)
    z_channels = shapes["decoder.conv_in.weight"][1] if decoder else moments // alone
    double_z = moments == 2 * z_channels or encoder is None
    embed_dim = z_channels
    if "post_quant_conv.weight" in shapes:
        embed_dim = shapes["post_quant_conv.weight"][1]
    elif "quant_conv.weight" in shapes:
        embed_dim = shapes["quant_conv.weight"][0] // (1 + double_z)
    return KLConfig(
        z_channels=z_channels,
        embed_dim=embed_dim,
        encoder=encoder,
        decoder=decoder,
        in_channels=shapes["encoder.conv_in.weight"][1] if encoder else 3,
        out_ch=shapes["decoder.conv_out.weight"][0] if decoder else 3,
        double_z=double_z,
        quant_conv="quant_conv.weight" in shapes,
        post_quant_conv="post_quant_conv.weight" in shapes,
        num_groups=groups["decoder" if decoder else "encoder"],
        tanh_out=flag(hints, "tanh_out"),
        give_pre_end=flag(hints, "give_pre_end"),
    )


def kl_settings(model: Any) -> dict[str, str]:
    """What a file of this model must hold beside its weights."""
    found: dict[str, str] = {}
    decoder: Any = getattr(model, "decoder", None)
    for name, values in (("norm_num_groups", _groups), ("dropout", _dropout)):
        halves = {half: set(values(getattr(model, half))) for half in HALVES if hasattr(model, half)}
        found |= _shortest(name, {half: some.pop() for half, some in halves.items() if len(some) == 1})
    if found.get("dropout") == "0.0":
        del found["dropout"]
    found |= {name: "True" for name in ("tanh_out", "give_pre_end") if getattr(decoder, name, False)}
    if decoder is None and isinstance(getattr(model, "regularization", None), IdentityRegularizer):
        found["double_z"] = "False"  # else the moments' channels are twice the decoder's, or not
    return found


def _groups(half: nn.Module) -> Iterator[int]:
    yield from (layer.num_groups for layer in half.modules() if isinstance(layer, nn.GroupNorm))


def _dropout(half: nn.Module) -> Iterator[float]:
    yield from (float(layer.dropout.p) for layer in half.modules() if isinstance(layer, ResnetBlock))


def _shortest(name: str, values: Mapping[str, object]) -> dict[str, str]:
    """One entry where the halves agree, else one for each."""
    if len({*values.values()}) == 1:
        return {name: str(next(iter(values.values())))}
    return {f"{half}_{name}": str(value) for half, value in values.items()}
