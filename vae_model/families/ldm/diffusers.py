"""What diffusers' config.json says of an ldm autoencoder."""

from __future__ import annotations

from typing import Any

from ..family import refuse
from .config import KLConfig, LevelsConfig


def image_fields(config: KLConfig) -> dict[str, Any]:
    """Fields of every image model; InputError for an encoder and a decoder that diffusers cannot build together."""
    encoder, decoder = config.encoder, config.decoder
    if encoder is None or decoder is None:
        raise refuse("encoder and decoder", "one of them")
    same = (encoder.widths, encoder.num_res_blocks, encoder.attn_type)
    other = (decoder.widths, decoder.num_res_blocks, decoder.attn_type)
    if same[1:] != other[1:] or (same != other and config.patch == 1) or encoder.ch != encoder.widths[0]:
        raise refuse("an encoder as wide and deep as its decoder", f"{same} and {other}")
    if encoder.attn_type == "linear":
        raise refuse("ordinary attention", "linear attention")
    return {
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


def kl_fields(config: KLConfig) -> dict[str, Any]:
    """Fields of diffusers' KL class; InputError for another network."""
    fields = image_fields(config)
    if config.embed_dim != config.z_channels or not config.double_z:
        found = f"{config.embed_dim} and {config.z_channels}, variances: {config.double_z}"
        raise refuse("as many latent channels behind the quant convolutions as before, and variances", found)
    return fields | {
        "_class_name": "AutoencoderKL",
        "mid_block_add_attention": config.encoder is not None and config.encoder.attn_type != "none",
        "use_post_quant_conv": config.post_quant_conv,
        "use_quant_conv": config.quant_conv,
    }


def _blocks(levels: LevelsConfig, name: str) -> list[str]:
    return [f"Attn{name}" if level in levels.attn_levels else name for level in range(len(levels.widths))]
