"""The config.json that diffusers wants beside the weights: from our configuration to its fields."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from .config import Config
from .latent_formats import pipeline_numbers
from .ldm.config import KLConfig, LevelsConfig
from .tiny.config import TinyConfig
from .video.config import VideoConfig
from .wan.config import WanConfig

_KEPT = ("scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast", "sample_size")
"""Fields that no weight tells: kept where the source had them."""
_QWEN_CLASS = "AutoencoderKLQwenImage"
_REMEDY = "write a .safetensors file instead of a folder"


def diffusers_config(config: Config, hints: Mapping[str, str]) -> dict[str, Any]:
    """Fields of config.json; InputError for a network that diffusers has no class for."""
    if isinstance(config, WanConfig):
        fields = _wan(config, hints.get("_class_name") == _QWEN_CLASS)
    else:
        fields = _tiny(config) if isinstance(config, TinyConfig) else _kl(config)
    if isinstance(config, VideoConfig):
        fields = _video(config, fields)
    return fields | {name: _value(hints[name]) for name in _KEPT if name in hints}


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _refuse(expected: str, found: object) -> InputError:
    return InputError(f"diffusers folder: expected {expected}, got {found}: {_REMEDY}")


def _kl(config: KLConfig) -> dict[str, Any]:
    encoder, decoder = config.encoder, config.decoder
    if encoder is None or decoder is None:
        raise _refuse("encoder and decoder", "one of them")
    same = (encoder.widths, encoder.num_res_blocks, encoder.attn_type)
    other = (decoder.widths, decoder.num_res_blocks, decoder.attn_type)
    if same[1:] != other[1:] or (same != other and config.patch == 1) or encoder.ch != encoder.widths[0]:
        raise _refuse("an encoder as wide and deep as its decoder", f"{same} and {other}")
    if encoder.attn_type == "linear":
        raise _refuse("ordinary attention", "linear attention")
    fields: dict[str, Any] = {
        "act_fn": "silu",
        "block_out_channels": list(encoder.widths),
        "down_block_types": _blocks(encoder, "DownEncoderBlock2D"),
        "in_channels": config.in_channels,
        "latent_channels": config.z_channels,
        "layers_per_block": encoder.num_res_blocks,
        "norm_num_groups": config.num_groups,
        "out_channels": config.out_ch,
        "up_block_types": _blocks(decoder, "UpDecoderBlock2D")[::-1],
    }
    if config.codebook:
        if not (config.quant_conv and config.post_quant_conv) or encoder.attn_type == "none":
            raise _refuse("a VQ model with quant convolutions and attention", "one without")
        return fields | {
            "_class_name": "VQModel",
            "num_vq_embeddings": config.codebook,
            "vq_embed_dim": config.embed_dim,
        }
    if config.embed_dim != config.z_channels or not config.double_z:
        found = f"{config.embed_dim} and {config.z_channels}, variances: {config.double_z}"
        raise _refuse("as many latent channels behind the quant convolutions as before, and variances", found)
    fields |= {
        "_class_name": "AutoencoderKL",
        "mid_block_add_attention": encoder.attn_type != "none",
        "use_post_quant_conv": config.post_quant_conv,
        "use_quant_conv": config.quant_conv,
    }
    if config.patch > 1:
        fields |= {
            "_class_name": "AutoencoderKLFlux2",
            "batch_norm_eps": config.batch_norm_eps,
            "patch_size": [config.patch, config.patch],
        }
        if decoder.widths != encoder.widths:
            fields["decoder_block_out_channels"] = list(decoder.widths)
    return fields


def _video(config: VideoConfig, fields: dict[str, Any]) -> dict[str, Any]:
    """As of an image model, for the one network that diffusers has of this kind."""
    assert config.encoder is not None
    told = (config.time_mode, config.video_kernel_size, config.num_groups, config.post_quant_conv)
    attends = config.decoder is not None and (config.decoder.attn_levels or config.decoder.attn_type != "vanilla")
    if told != ("conv-only", (3, 1, 1), 32, False) or attends or config.encoder.num_res_blocks != 2:
        raise _refuse("the decoder of Stable Video Diffusion", f"{told} as mode, kernel, groups and post_quant_conv")
    kept = ("block_out_channels", "down_block_types", "in_channels", "latent_channels", "layers_per_block")
    return {
        "_class_name": "AutoencoderKLTemporalDecoder",
        "out_channels": fields["out_channels"],
        **{name: fields[name] for name in kept},
    }


def _blocks(levels: LevelsConfig, name: str) -> list[str]:
    return [f"Attn{name}" if level in levels.attn_levels else name for level in range(len(levels.widths))]


def _wan(config: WanConfig, qwen: bool) -> dict[str, Any]:
    """diffusers has the same network in two classes; whose latents they are is all that tells them apart."""
    encoder, decoder = config.encoder, config.decoder
    if encoder is None or decoder is None:
        raise _refuse("encoder and decoder", "one of them")
    unit = encoder.ch
    factors, decoder_factors = ([width / unit for width in encoder.widths], _decoder_factors(encoder, decoder))
    whole = all(factor == int(factor) for factor in factors)
    if encoder.num_res_blocks != decoder.num_res_blocks or not whole or decoder_factors != factors:
        raise _refuse("an encoder as deep as its decoder, widths in proportion", f"{encoder} and {decoder}")
    fields: dict[str, Any] = {
        "_class_name": _QWEN_CLASS if qwen else "AutoencoderKLWan",
        "attn_scales": [],
        "base_dim": unit,
        "dim_mult": [int(factor) for factor in factors],
        "dropout": 0.0,
        "num_res_blocks": encoder.num_res_blocks,
        "temperal_downsample": list(config.over_time),
        "z_dim": config.latent_channels,
    }
    same = encoder.widths == decoder.widths and config.in_channels == config.out_channels
    if qwen and not same:
        raise _refuse(f"an encoder as wide as its decoder for {_QWEN_CLASS}", f"{encoder} and {decoder}")
    if qwen:
        return fields | {"input_channels": config.in_channels}
    if encoder.widths != decoder.widths:
        fields["decoder_base_dim"] = int(decoder.widths[0] / factors[0])
    return fields | {"in_channels": config.in_channels, "out_channels": config.out_channels}


def _decoder_factors(encoder: LevelsConfig, decoder: LevelsConfig) -> list[float]:
    """The decoder's widths in the unit in which its first is as the encoder's."""
    unit = decoder.widths[0] * encoder.ch / encoder.widths[0]
    return [width / unit for width in decoder.widths]


def _tiny(config: TinyConfig) -> dict[str, Any]:
    encoder, decoder = config.encoder_block_out_channels, config.decoder_block_out_channels
    if encoder is None or decoder is None:
        raise _refuse("encoder and decoder", "one of them")
    if config.midblock_gn or config.strided_stem:
        raise _refuse("a network of TAESD's kind", "TAEF2's or TAESana's")
    if len({*encoder, *decoder}) > 1:
        raise _refuse("stages of one width", f"{encoder} and {decoder}")
    scale, shift = pipeline_numbers(config)
    return {
        "_class_name": "AutoencoderTiny",
        "act_fn": config.act_fn,
        "decoder_block_out_channels": list(decoder),
        "encoder_block_out_channels": list(encoder),
        "force_upcast": config.force_upcast,
        "in_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "latent_magnitude": config.latent_magnitude,
        "latent_shift": config.latent_shift,
        "num_decoder_blocks": list(config.num_decoder_blocks),
        "num_encoder_blocks": list(config.num_encoder_blocks),
        "out_channels": config.out_channels,
        "scaling_factor": scale,
        "shift_factor": shift,
        "upsample_fn": config.upsample_fn,
        "upsampling_scaling_factor": config.upsampling_scaling_factor,
    }
