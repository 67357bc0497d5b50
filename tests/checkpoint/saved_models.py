"""Random small models of every family, by the arguments that people give, with every setting that no shape tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import torch
from exact_vae.tests.checkpoint.saved_newer import NEWER
from exact_vae.vae_model.families.ldm.autoencoder import AutoencoderKL, AutoencodingEngine
from exact_vae.vae_model.families.ldm.config import LevelsConfig
from exact_vae.vae_model.families.ldm.flux2 import AutoencoderFlux2
from exact_vae.vae_model.families.ldm.vq import AutoencoderVQ
from exact_vae.vae_model.families.table import FAMILIES
from exact_vae.vae_model.families.tiny.model import AutoencoderTiny
from exact_vae.vae_model.families.video.model import TIME_MODES
from exact_vae.vae_model.families.wan.config import WanConfig
from exact_vae.vae_model.families.wan.model import WanVAE
from torch import nn


@dataclass
class Made:
    """A model, what it was made from, and whether there is something in it that no file can hold."""

    model: Any
    arguments: str
    savable: bool
    latent_channels: int
    decodes: bool
    encodes: bool
    factor: int
    decode_factor: int


def often(rng: Random, usual: Any, *others: Any) -> Any:
    """The usual value half of the time."""
    return rng.choice([usual] * len(others) + list(others))


def coder_options(rng: Random, levels: int, z: int, video: bool) -> dict[str, Any]:
    """Of one half, as a ddconfig has them."""
    ch_mult = [rng.choice([1, 2, 1.5]) for _ in range(levels)]
    ch = rng.choice([4, 8])
    groups = [n for n in (1, 2, 4) if all(round(ch * factor) % n == 0 for factor in (1, *ch_mult))]
    return {
        "ch": ch,
        "ch_mult": tuple(ch_mult),
        "num_res_blocks": rng.choice([1, 2]),
        "attn_resolutions": tuple(size for size in (16, 8, 4) if not rng.randrange(4)),
        "dropout": often(rng, 0.0, 0.1, 0.25),
        "resamp_with_conv": often(rng, True, False),
        "resolution": 16,
        "z_channels": z,
        "attn_type": "vanilla" if video else often(rng, "vanilla", "none", "linear", "vanilla-xformers"),
        "num_groups": rng.choice(groups),
        "conv_shortcut": often(rng, False, True),
        "tanh_out": often(rng, False, True),
        "give_pre_end": not rng.randrange(6),
    }


def halves(rng: Random, *, video: bool = False, double_z: bool | None = None) -> tuple[dict[str, Any], int, int]:
    """(keyword arguments of an engine with quant convolutions, levels, embed_dim)."""
    levels, z = rng.choice([1, 2, 2, 3]), rng.choice([2, 3, 4])
    quant, post_quant = often(rng, True, False), often(rng, True, False)
    embed = rng.choice([z, 2, 5]) if quant and post_quant else z
    encoder = coder_options(rng, levels, z, False)
    decoder = encoder | {"attn_type": "vanilla"} if video else encoder
    if rng.randrange(2):
        decoder = coder_options(rng, levels, z, video)
    channels = {"in_channels": rng.choice([1, 3, 3, 4, 6]), "out_ch": rng.choice([1, 3, 3, 4])}
    variances = bool(often(rng, True, False)) if double_z is None else double_z
    arguments = {
        "ddconfig": encoder | channels | {"double_z": variances},
        "decoder_ddconfig": decoder | channels,
        "parts": often(rng, ("encoder", "decoder"), ("decoder",), *([] if video else [("encoder",)])),
        "use_quant_conv": quant,
        "use_post_quant_conv": post_quant,
    }
    return arguments, levels, embed


def _engine_facts(model: Any, arguments: Any, levels: int, channels: int, patch: int = 1) -> Made:
    factor = patch * 2 ** (levels - 1)
    parts = hasattr(model, "decoder"), hasattr(model, "encoder")
    return Made(model, repr(arguments), True, channels, *parts, factor, factor)


def make_kl(rng: Random) -> Made:
    arguments, levels, embed = halves(rng)
    if rng.randrange(5):
        model = AutoencoderKL(embed, **arguments, sample_posterior=False)
        return _engine_facts(model, arguments, levels, embed)
    variances = arguments["ddconfig"]["double_z"]
    name = "DiagonalGaussianRegularizer" if variances else "IdentityRegularizer"
    engine: dict[str, Any] = {
        "encoder_config": {"target": "Encoder", "params": arguments["ddconfig"]},
        "decoder_config": {"target": "Decoder", "params": arguments["decoder_ddconfig"]},
        "regularizer_config": {"target": name, "params": {"sample": False} if variances else {}},
    }
    return _engine_facts(AutoencodingEngine(**engine), engine, levels, arguments["ddconfig"]["z_channels"])


def make_video(rng: Random) -> Made:
    arguments, levels, embed = halves(rng, video=True)
    arguments["decoder_ddconfig"] |= {
        "time_mode": rng.choice(list(TIME_MODES)),
        "video_kernel_size": rng.choice([(3, 1, 1), 3, (5, 3, 1)]),
        "merge_strategy": rng.choice(["learned", "fixed"]),
        "alpha": rng.random(),
    }
    model = AutoencoderKL(embed, decoder_target="VideoDecoder", **arguments, sample_posterior=False)
    return _engine_facts(model, arguments, levels, embed)


def make_flux2(rng: Random) -> Made:
    arguments, levels, embed = halves(rng)
    eps = rng.choice([1e-4, 1e-3, 0.1])
    model = AutoencoderFlux2(embed, batch_norm_eps=eps, **arguments, sample_posterior=False)
    return _engine_facts(model, (arguments, eps), levels, 4 * embed, 2)


def make_vq(rng: Random) -> Made:
    arguments, levels, embed = halves(rng, double_z=False)
    return _engine_facts(AutoencoderVQ(embed, codebook=rng.choice([4, 16]), **arguments), arguments, levels, embed)


def make_wan(rng: Random) -> Made:
    levels = rng.choice([1, 2, 3])

    def half() -> LevelsConfig:
        widths = tuple(rng.choice([4, 8, 12]) for _ in range(levels))
        return LevelsConfig(rng.choice([4, 8]), widths, rng.choice([1, 2]))

    parts = rng.choice([(half(), half()), (half(), half()), (half(), None), (None, half())])
    over_time = tuple(bool(rng.randrange(2)) for _ in range(levels - 1))
    channels = {"in_channels": rng.choice([3, 4]), "out_channels": rng.choice([3, 4])}
    config = WanConfig(rng.choice([2, 4]), *parts, over_time=over_time, **channels)
    facts = config.latent_channels, parts[1] is not None, parts[0] is not None
    return Made(WanVAE(config), repr(config), True, *facts, config.factor, config.factor)


def make_tiny(rng: Random) -> Made:
    stages, stem = rng.choice([2, 3, 4]), not rng.randrange(4)
    parts = rng.choice([(True, True), (True, True), (True, False), (False, True)])
    stem = stem and stages > 2
    count = {"encoder": stages - stem, "decoder": stages}
    arguments: dict[str, Any] = {"midblock_gn": not rng.randrange(3), "strided_stem": stem}
    for half, is_there in zip(("encoder", "decoder"), parts, strict=True):
        blocks = [rng.choice([0, 1, 2]) for _ in range(count[half])]
        arguments[f"num_{half}_blocks"] = (*blocks[:-1], 1)
        widths = tuple(rng.choice([4, 8]) for _ in range(count[half]))
        arguments[f"{half}_block_out_channels"] = widths if is_there else None
    arguments |= {
        "in_channels": rng.choice([1, 3, 3, 4]),
        "out_channels": rng.choice([1, 3, 3, 4]),
        "act_fn": often(rng, "relu", "silu", "gelu", "mish"),
        "upsample_fn": often(rng, "nearest", "bilinear", "bicubic", "nearest-exact"),
        "latent_channels": rng.choice([4, 5, 16]),
        "upsampling_scaling_factor": often(rng, 2, 1, 3),
        "latent_magnitude": often(rng, 3, 5, 2.5),
        "latent_shift": often(rng, 0.5, 0.25),
        "force_upcast": often(rng, False, True),
        "scaling_factor": often(rng, 1.0, 0.18215, 0.5),
        "shift_factor": often(rng, 0.0, 0.0609),
    }
    factor, decode_factor = 2 ** (stages - 1), arguments["upsampling_scaling_factor"] ** (stages - 1)
    if not parts[0]:
        factor = decode_factor
    model = AutoencoderTiny(**arguments)
    return Made(model, repr(arguments), True, arguments["latent_channels"], *parts[::-1], factor, decode_factor)


def make_by_configuration(family: str, rng: Random) -> Made:
    """A model of a family that takes nothing else."""
    config = NEWER[family](rng)
    halves = config.widths_of_halves
    facts = config.latent_channels, "decoder" in halves, "encoder" in halves, config.factor, config.decode_factor
    return Made(FAMILIES[family].build(config), repr(config), True, *facts)


MAKERS: dict[str, Callable[[Random], Made]] = {
    "kl": make_kl,
    "video": make_video,
    "flux2": make_flux2,
    "vq": make_vq,
    "wan": make_wan,
    "tiny": make_tiny,
    **{family: partial(make_by_configuration, family) for family in NEWER},
}


class _Louder(nn.GELU):
    """A layer that no file names."""

    def forward(self, input: Any) -> Any:
        return 2 * super().forward(input)


def _spoil(made: Made, rng: Random) -> None:
    """Change something that no argument, and so no file, can say."""
    layers: list[Any] = list(made.model.modules())
    convs = [layer for layer in layers if type(layer) is nn.Conv2d and layer.padding == (1, 1)]
    norms = [layer for layer in layers if isinstance(layer, nn.GroupNorm)]
    blocks = [layer for layer in layers if isinstance(getattr(layer, "conv", None), nn.Sequential)]
    if blocks and rng.randrange(2):
        rng.choice(blocks).conv[1] = _Louder()
    elif norms and rng.randrange(2):
        rng.choice(norms).eps = 1e-2
    elif convs:
        rng.choice(convs).padding_mode = "circular"
    else:
        return
    made.savable = False


def make(family: str, seed: int) -> Made:
    """The model of one seed, with random weights; every tenth cannot be saved."""
    rng = Random(f"{family} {seed}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = MAKERS[family](rng)
        for parameter in made.model.parameters():
            parameter.data += torch.randn(parameter.shape) * (0.3 if parameter.ndim == 1 else 0.02)
        for layer in made.model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                assert layer.running_mean is not None
                assert layer.running_var is not None
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 1.5)
    if not rng.randrange(10):
        _spoil(made, rng)
    made.model.eval().requires_grad_(False)
    return made
