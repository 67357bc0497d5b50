"""The names under which a user may say what no shape tells, and those that a config.json may hold beside them.

A misspelt name would be a wrong picture without a word. So a dictionary that a user gives may hold what its family
reads, what configurations of diffusers and latent-diffusion hold beside it (shapes tell that better), and nothing else.
A config.json that lies beside a file may come from a later program: what is not known in it is noted.
Source of the names: the arguments of diffusers' autoencoders (0.38), and of ldm's `ddconfig`, read as facts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import InputError
from ..errors.listed import nearest, on_one_line, some
from ..notes import Warned
from .family import Family
from .hints import HALVES, PER_HALF

_OF_DIFFUSERS = """
    act_fn attention_head_dim attn_scales base_dim batch_norm_eps batch_norm_momentum block_out_channels
    decoder_act_fns decoder_base_dim decoder_block_out_channels decoder_block_types decoder_conv_act_fn
    decoder_in_shortcut decoder_layers_per_block decoder_norm_types decoder_qkv_multiscales dim_mult
    down_block_out_channels down_block_types downsample_block_type downsample_match_channel dropout
    encoder_block_out_channels encoder_block_types encoder_layers_per_block encoder_out_shortcut
    encoder_qkv_multiscales force_upcast in_channels input_channels is_residual latent_channels latent_magnitude
    latent_shift latents_mean latents_std layers_per_block layers_per_down_block layers_per_up_block
    lookup_from_codebook mid_block_add_attention norm_num_groups norm_type num_decoder_blocks num_encoder_blocks
    num_res_blocks num_vq_embeddings out_channels patch_size sample_size scale_factor_spatial scale_factor_temporal
    scaling_factor shift_factor spatial_compression_ratio temperal_downsample temporal_downsample
    up_block_out_channels up_block_types upsample_block_type upsample_fn upsample_match_channel
    upsampling_scaling_factor use_post_quant_conv use_quant_conv vq_embed_dim z_dim
"""
_OF_LDM = """
    attn_resolutions attn_type ch ch_mult conv_shortcut double_z embed_dim in_channels n_embed num_groups num_res_blocks
    out_ch resamp_with_conv resolution use_linear_attn z_channels
"""
_OF_TINY = ("midblock_gn", "strided_stem")
_BESIDE = frozenset((*_OF_DIFFUSERS.split(), *_OF_LDM.split(), *_OF_TINY))
"""What configurations hold; a family reads some of it, and for the others shapes decide."""
_OURS = ("vae_scale", "vae_shift", "latent_format")
_SAME = {"num_groups": "norm_num_groups"}
"""Two names of one thing: of an Encoder's and Decoder's argument, and in a config.json."""


def _as_text(fields: Mapping[str, Any]) -> dict[str, str]:
    """Fields of a configuration as a header would have them."""
    return {str(name): str(list(value) if isinstance(value, tuple) else value) for name, value in fields.items()}  # pyright: ignore


def given_settings(config: Mapping[str, Any], family: Family, others: Iterable[Family]) -> dict[str, str]:
    """What a user says of a model of `family`, as text; InputError for names that nobody reads.

    A name with a `_` in front, as `_class_name`, is diffusers' own, and says nothing here.
    """
    read = _read_by(family)
    known = _BESIDE | read
    strange = [name for name in config if not isinstance(name, str) or (name not in known and not name.startswith("_"))]  # pyright: ignore
    elsewhere = frozenset[str]().union(*map(_read_by, others))
    if strange:
        name = on_one_line(str(strange[0]))
        nearby = nearest(name, [*sorted(read), *sorted(known - read)])
        way = f"{nearby} is probably meant" if nearby else f"leave it out; known are {', '.join(sorted(read))}"
        if isinstance(config[strange[0]], Mapping):
            way = f"it is a dictionary itself, so give config={name}"
        elif strange[0] in elsewhere:
            way = "leave it out, such a model has nothing of it"
        listed = some(on_one_line(str(one)) for one in strange)
        raise InputError(f"config: expected settings of the {family.title}, got {listed}: {way}")
    told = _as_text(config)
    return {_SAME[name]: told[name] for name in _SAME if name in told} | told


def known_settings(config: Mapping[str, Any]) -> dict[str, str]:
    """Those that are known here of the configuration of one of diffusers' models, which may be newer."""
    return {name: text for name, text in _as_text(config).items() if name in _BESIDE or name.startswith("_")}


def notes_on_fields(names: Iterable[str], family: Family) -> list[str]:
    """What to say of the fields of a config.json beside a file; a misspelt one is a warning."""
    read, notes = _read_by(family), list[str]()
    unknown = [name for name in sorted(names) if name not in _BESIDE | read and not name.startswith("_")]
    for name in unknown:
        nearby = nearest(name, sorted(read))
        if nearby:
            notes.append(Warned(f"{on_one_line(name)} in its config.json is not read, {nearby} is probably meant"))
            unknown = [other for other in unknown if other != name]
    if unknown:
        notes.append(f"not known in its config.json, and not read: {some(map(on_one_line, unknown))}")
    return notes


def _read_by(family: Family) -> frozenset[str]:
    """The names that change a model of that family, or what is said of it."""
    halves = {f"{half}_{name}" for half in HALVES for name in PER_HALF if name in family.reads}
    return frozenset((*family.reads, *family.fixed, *_OURS, *halves))
