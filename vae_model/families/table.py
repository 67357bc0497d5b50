"""Model families: how each configuration value is read from a shape, and how the model is built. Rows, not branches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import nn

from .config import Config
from .hints import Hints, flag, number, word
from .ldm.autoencoder import build_kl
from .ldm.config import KLConfig, LevelsConfig
from .ldm.flux2 import PATCH, build_flux2
from .ldm.vq import build_vq
from .tiny.family import UPSAMPLE_MODES, build_tiny, infer_tiny, tiny_core
from .tiny.model import ACTIVATIONS
from .video.config import VideoConfig
from .video.model import TIME_MODES
from .wan.config import WanConfig
from .wan.model import build_wan

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Family:
    """One kind of autoencoder."""

    title: str
    core_keys: Callable[[str], tuple[str, ...]]
    """Our keys that every file of a layout (by name) must hold: for naming what is missing."""
    infer: Callable[[Shapes, Hints], Config]
    """Shapes under our names -> configuration. KeyError or ValueError where they do not describe one."""
    build: Callable[[Any], nn.Module]
    fixed: Mapping[str, tuple[str, ...]]
    """Fields of a config.json that no shape tells, and the values for which our modules compute the same."""


def _count(shapes: Shapes, template: str) -> int:
    """How many consecutive numbers, from 0, fill the {} of a key template."""
    number = 0
    while template.format(number) in shapes:
        number += 1
    return number


def _infer_levels(shapes: Shapes, hints: Hints, half: str) -> LevelsConfig | None:
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


def _norm_groups(hints: Hints, halves: Mapping[str, LevelsConfig]) -> dict[str, int]:
    """Of each half: the hinted number, else 32 as everywhere in the field, else the most that divides all widths."""
    widths = [width for one in halves.values() for width in (one.ch, *one.widths)]
    usual = next(groups for groups in (32, 16, 8, 4, 2, 1) if all(width % groups == 0 for width in widths))
    return {half: number(hints, "norm_num_groups", usual, half=half) for half in halves}


def infer_kl(shapes: Shapes, hints: Hints) -> KLConfig:
    """Everything from tensors but what `settings` writes; encoder and decoder each on their own."""
    encoder, decoder = _infer_levels(shapes, hints, "encoder"), _infer_levels(shapes, hints, "decoder")
    groups = _norm_groups(hints, {half: one for half, one in (("encoder", encoder), ("decoder", decoder)) if one})
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


def infer_video(shapes: Shapes, hints: Hints) -> VideoConfig:
    """As for `infer_kl`, and which layers mix frames; shares are learned unless a hint says otherwise."""
    image = infer_kl(shapes, hints)
    pieces = {"resnet": ".time_stack.", "attention": ".time_mix_block.", "conv_out": ".time_mix_conv."}
    found = {name for name, piece in pieces.items() if any(piece in key for key in shapes)}
    kernels = ("decoder.conv_out.time_mix_conv.weight", "decoder.mid.block_1.time_stack.in_layers.2.weight")
    sizes = [shapes[key][2:] for key in kernels if key in shapes] or [(3, 1, 1)]
    frames, rows, columns = sizes[0]
    return VideoConfig(
        **{field.name: getattr(image, field.name) for field in fields(image)},
        time_mode=next((mode for mode, mixing in TIME_MODES.items() if set(mixing) == found), "conv-only"),
        video_kernel_size=(frames, rows, columns),
        merge_strategy=word(hints, "merge_strategy", "learned"),
    )


def infer_flux2(shapes: Shapes, hints: Hints) -> KLConfig:
    """As for KL, with latents in 2x2 squares."""
    eps = number(hints, "batch_norm_eps", KLConfig.batch_norm_eps)
    return replace(infer_kl(shapes, hints), patch=PATCH, batch_norm_eps=eps)


def infer_vq(shapes: Shapes, hints: Hints) -> KLConfig:
    """As for KL, with the codebook's size; the encoder gives no variances."""
    image = infer_kl(shapes, {**hints, "double_z": "False"})
    return replace(image, codebook=shapes["quantize.embedding.weight"][0], double_z=False)


def _row_of_levels(shapes: Shapes, row: str) -> tuple[list[int], int, list[bool]]:
    """Of blocks and resamplings in one row: the level widths, the blocks of a level, whether steps act over time."""
    widths, blocks, over_time = list[int](), list[int](), list[bool]()
    number, starts = 0, True
    while True:
        layer = f"{row}.{number}"
        if f"{layer}.residual.2.weight" in shapes:
            if starts:
                widths.append(shapes[f"{layer}.residual.2.weight"][0])
                blocks.append(0)
            blocks[-1] += 1
            starts = False
        elif f"{layer}.resample.1.weight" in shapes:
            over_time.append(f"{layer}.time_conv.weight" in shapes)
            starts = True
        else:
            return widths, blocks[0], over_time
        number += 1


def infer_wan(shapes: Shapes, hints: Hints) -> WanConfig:
    """Everything from tensors."""
    encoder = decoder = None
    over_time: list[bool] = []
    if "decoder.conv1.weight" in shapes:
        widths, blocks, over_time = _row_of_levels(shapes, "decoder.upsamples")
        decoder = LevelsConfig(widths[-1], tuple(widths[::-1]), blocks - 1)
        over_time.reverse()
    if "encoder.conv1.weight" in shapes:
        widths, blocks, over_time = _row_of_levels(shapes, "encoder.downsamples")
        encoder = LevelsConfig(shapes["encoder.conv1.weight"][0], tuple(widths), blocks)
    return WanConfig(
        latent_channels=shapes["decoder.conv1.weight"][1] if decoder else shapes["encoder.head.2.weight"][0] // 2,
        encoder=encoder,
        decoder=decoder,
        over_time=tuple(over_time),
        in_channels=shapes["encoder.conv1.weight"][1] if encoder else 3,
        out_channels=shapes["decoder.head.2.weight"][0] if decoder else 3,
    )


def _kl_core(_layout: str) -> tuple[str, ...]:
    names = ("conv_in.weight", "mid.block_1.norm1.weight", "mid.block_1.conv1.weight", "mid.block_2.conv2.weight")
    return tuple(
        f"decoder.{name}" for name in (*names, "up.0.block.0.conv1.weight", "norm_out.weight", "conv_out.weight")
    )


def _flux2_core(layout: str) -> tuple[str, ...]:
    return (*_kl_core(layout), "bn.running_mean", "bn.running_var")


def _vq_core(layout: str) -> tuple[str, ...]:
    return (*_kl_core(layout), "quantize.embedding.weight")


def _wan_core(_layout: str) -> tuple[str, ...]:
    names = ("conv1.weight", "middle.0.residual.2.weight", "middle.1.to_qkv.weight", "upsamples.0.residual.2.weight")
    return ("conv2.weight", *(f"decoder.{name}" for name in (*names, "head.2.weight")))


FAMILIES: dict[str, Family] = {
    "kl": Family("ldm KL autoencoder", _kl_core, infer_kl, build_kl, {"act_fn": ("silu", "swish")}),
    "video": Family(
        "KL autoencoder with temporal decoder",
        _kl_core,
        infer_video,
        build_kl,
        {"act_fn": ("silu", "swish"), "merge_strategy": ("learned", "fixed")},
    ),
    "flux2": Family(
        "Flux.2 autoencoder",
        _flux2_core,
        infer_flux2,
        build_flux2,
        {"act_fn": ("silu", "swish"), "patch_size": ("[2, 2]",)},
    ),
    "vq": Family(
        "VQ autoencoder", _vq_core, infer_vq, build_vq, {"act_fn": ("silu", "swish"), "norm_type": ("group",)}
    ),
    "wan": Family(
        "Wan 2.1 or Qwen-Image autoencoder",
        _wan_core,
        infer_wan,
        build_wan,
        {"attn_scales": ("[]",), "is_residual": ("False",), "patch_size": ("None",)},
    ),
    "tiny": Family(
        "TAESD tiny autoencoder",
        tiny_core,
        infer_tiny,
        build_tiny,
        {"act_fn": tuple(ACTIVATIONS), "upsample_fn": UPSAMPLE_MODES},
    ),
}
