"""Every two-dimensional family as a row: a narrow model of its structure, and what a file of it must be told from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from exact_vae.vae_model.families.dc_ae.config import DCConfig, DCLevels, Stage
from exact_vae.vae_model.families.dc_ae.layers import RMSNorm
from exact_vae.vae_model.families.family import Config
from exact_vae.vae_model.families.hunyuan_image.config import HunyuanImageConfig
from exact_vae.vae_model.families.ldm.config import KLConfig, LevelsConfig
from exact_vae.vae_model.families.qwen_image_21.config import QwenImage21Config
from exact_vae.vae_model.families.table import FAMILIES
from exact_vae.vae_model.families.taehv.config import TAEHVConfig
from exact_vae.vae_model.families.tiny.config import TinyConfig
from exact_vae.vae_model.families.wan.config import WanConfig
from exact_vae.vae_model.families.wan.layers import RMS_norm
from exact_vae.vae_model.families.wan22 import Wan22Config
from torch import nn

KL_LAYOUTS = ("ldm", "diffusers", "diffusers-old")
WAN_LAYOUTS = ("wan", "diffusers")
HUNYUAN_LAYOUTS = ("ldm", "diffusers")
DC_LAYOUTS = ("diffusers", "original")
TINY_LAYOUTS = ("taesd-comfyui", "taesd-diffusers", "taesd-pair")


@dataclass(frozen=True)
class Row:
    """`channels` and `factor`: of the latents that users hold."""

    family: str
    config: Config
    channels: int
    factor: int
    layouts: tuple[str, ...] = KL_LAYOUTS


def levels(*widths: int, blocks: int = 1, attn: tuple[int, ...] = ()) -> LevelsConfig:
    return LevelsConfig(ch=widths[0], widths=widths, num_res_blocks=blocks, attn_levels=attn)


def kl(z: int, half: LevelsConfig, decoder: LevelsConfig | None = None, **options: Any) -> KLConfig:
    values: dict[str, Any] = {"embed_dim": z, "num_groups": 4, **options}
    return KLConfig(z_channels=z, encoder=half, decoder=decoder or half, **values)


def tiny(z: int, **options: Any) -> TinyConfig:
    half: dict[str, Any] = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    return TinyConfig(**{"latent_channels": z, **half, **options})


def wan(z: int, half: LevelsConfig, **options: Any) -> WanConfig:
    return WanConfig(z, half, half, **{"over_time": (False, True, True), **options})


def hunyuan_image(z: int, *widths: int) -> HunyuanImageConfig:
    half = levels(*widths, blocks=2)
    return HunyuanImageConfig(z, half, half)


def qwen_image_21(z: int, half: LevelsConfig, decoder: LevelsConfig | None = None) -> QwenImage21Config:
    return QwenImage21Config(z, half, decoder or half, (False, True, True, True)[: len(half.widths) - 1])


def wan22(z: int, half: LevelsConfig, decoder: LevelsConfig | None = None, **options: Any) -> Wan22Config:
    return Wan22Config(z, half, decoder or half, **{"over_time": (False, True, True), **options})


def taehv(z: int, over_time: tuple[bool, ...] = (False, True, True), **options: Any) -> TAEHVConfig:
    return TAEHVConfig(z, 8, (16, 12, 8, 8), over_time[::-1], over_time, **options)


def dc_ae(z: int, *widths: int, whole: bool = True, pixels: bool = True, **options: Any) -> DCConfig:
    """Attention in the smaller half of the levels; without `whole` nothing at full size, and BatchNorm in the others.
    With heads of other than 32 channels queries, keys and values have a larger scale, too, which tells."""
    scales = (5,) if "head_dim" in options else ()

    def half(*, decodes: bool) -> DCLevels:
        norm = ("batch_norm", "relu") if decodes and not whole else ("rms_norm", "silu")
        stages = [
            Stage(width, 1, True, scales) if number >= len(widths) // 2 else Stage(width, 1, False, (), *norm)
            for number, width in enumerate(widths)
        ]
        first = [stages[0]] if whole else [Stage(widths[1] // 2, 0, False, (), *norm)]
        return DCLevels((*first, *stages[1:]), pixels)

    return DCConfig(z, half(decodes=False), half(decodes=True), **options)


F8 = levels(8, 16, 32, 32)
BARE = {"quant_conv": False, "post_quant_conv": False}
SANA = {
    "encoder_block_out_channels": (4, 8, 8, 8, 8),
    "decoder_block_out_channels": (32, 16, 8, 8, 8, 8),
    "num_encoder_blocks": (0, 1, 3, 3, 3),
    "num_decoder_blocks": (3, 3, 3, 3, 3, 1),
    "strided_stem": True,
}

SMALL = kl(16, levels(32, 64, 96, 128), num_groups=16)
"""The bundled VAE: f8, 16 latent channels, 3.5 million parameters."""

ROWS: dict[str, Row] = {
    "SD1, SD2, SDXL": Row("kl", kl(4, levels(8, 16, 32, 32, blocks=2)), 4, 8),
    "SD3, Flux.1": Row("kl", kl(16, F8, **BARE), 16, 8),
    "Flux.2": Row("flux2", kl(32, F8, patch=2), 128, 16, ("ldm", "diffusers")),
    "Flux.2 small decoder": Row("flux2", kl(32, F8, levels(12, 24, 48, 48), patch=2), 128, 16, ("ldm", "diffusers")),
    "x4-upscaler": Row("kl", kl(4, levels(8, 16, 32)), 4, 4),
    "kl-f4": Row("kl", kl(3, levels(8, 16, 32)), 3, 4),
    "kl-f16": Row("kl", kl(16, levels(8, 8, 16, 16, 32, attn=(4,))), 16, 16),
    "kl-f32": Row("kl", kl(64, levels(8, 8, 8, 16, 16, 32, attn=(4, 5)), embed_dim=32), 32, 32),
    "VQ-f4": Row("vq", kl(3, levels(8, 16, 32), double_z=False, codebook=64), 3, 4),
    "VQ-f8": Row("vq", kl(4, levels(8, 16, 16, 32, attn=(3,)), double_z=False, codebook=64), 4, 8),
    "Wan 2.1, Qwen-Image": Row("wan", wan(16, levels(8, 16, 32, 32, blocks=2)), 16, 8, WAN_LAYOUTS),
    "Wan 2.2": Row(
        "wan22",
        wan22(48, levels(8, 16, 32, 32, blocks=2), levels(12, 24, 48, 48, blocks=2)),
        48,
        16,
        WAN_LAYOUTS,
    ),
    "Qwen-Image 2.1": Row(
        "qwen_image_21",
        qwen_image_21(32, levels(8, 16, 16, 32, 32, blocks=2), levels(12, 12, 24, 24, 24, blocks=2)),
        32,
        16,
        WAN_LAYOUTS,
    ),
    "HunyuanImage 2.1": Row("hunyuan_image", hunyuan_image(32, 32, 32, 32, 64, 64, 64), 32, 32, HUNYUAN_LAYOUTS),
    "Sana": Row("dc_ae", dc_ae(32, 8, 8, 16, 16, 32, 32, pixels=False, head_dim=8), 32, 32, DC_LAYOUTS),
    "DC-AE": Row("dc_ae", dc_ae(32, 4, 8, 16, 32, 32, 64, whole=False), 32, 32, DC_LAYOUTS),
    "TAEW2.1, TAEHV": Row("taehv", taehv(16), 16, 8, ("taehv",)),
    "TAEW2.2": Row("taehv", taehv(48, patch=2), 48, 16, ("taehv",)),
    "TAELTX": Row("taehv", taehv(128, (True,) * 3, patch=4), 128, 32, ("taehv",)),
    "TAESD, TAESDXL": Row("tiny", tiny(4), 4, 8, TINY_LAYOUTS),
    "TAESD3, TAEF1": Row("tiny", tiny(16), 16, 8, TINY_LAYOUTS),
    "TAEF2": Row("tiny", tiny(32, midblock_gn=True), 32, 8, TINY_LAYOUTS),
    "TAESana": Row("tiny", tiny(32, **SANA), 32, 32, TINY_LAYOUTS),
}


def random_model(row: Row, seed: int = 0) -> Any:
    """No two tensors alike, norms and statistics that are more than 1 and 0, activations of about 1."""
    model: nn.Module = FAMILIES[row.family].build(row.config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = noise / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.2 * noise
    for layer in model.modules():
        if isinstance(layer, (nn.GroupNorm, RMSNorm)) or (isinstance(layer, nn.BatchNorm2d) and layer.affine):
            layer.weight.data += 1
        if isinstance(layer, RMS_norm):
            layer.gamma.data = layer.gamma.data * 0.2 + 1
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.copy_(torch.randn(layer.num_features, generator=generator))
            layer.running_var.copy_(torch.rand(layer.num_features, generator=generator) + 0.5)
            layer.num_batches_tracked += 1234
    if row.family == "vq":
        codebook: Any = model.get_parameter("quantize.embedding.weight")
        codebook.data *= codebook.shape[1] ** 0.5
    return model.eval().requires_grad_(False)


def hints(config: Config) -> dict[str, Any]:
    """What no shape tells, as a config.json would."""
    return {"norm_num_groups": config.num_groups} if isinstance(config, KLConfig) else {}
