"""The KL autoencoders of latent-diffusion: Stable Diffusion, SDXL, SD 3, Flux.1 and their kin.

What no tensor's shape tells is written beside the weights, as text in a safetensors header, under the names of ldm's
and diffusers' arguments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor, nn

from ...exact.layer import UnsupportedModule
from ...exact.read import describe
from ..coder import Coder, require_moments
from ..family import Family, Shapes, both_halves, refuse
from ..hints import HALVES, Hints, consecutive, flag, number
from ..latent_formats import Users, users
from ..layout import Layout
from .autoencoder import AbstractAutoencoder, build_kl
from .config import KLConfig, LevelsConfig
from .distribution import IdentityRegularizer
from .layers import ResnetBlock
from .memory import coder_elements
from .names import DIFFUSERS, LDM, OLD_ATTENTION_MARKS, OLD_DIFFUSERS
from .program import build_program

VIDEO_MARKS = (
    "decoder.mid.block_1.mix_factor",
    "decoder.mid.attn_1.mix_factor",
    "decoder.conv_out.time_mix_conv.weight",
)
"""A file under our names with one of these has a temporal decoder."""
VIDEO_DIFFUSERS_MARK = "decoder.mid_block.resnets.0.spatial_res_block.norm1.weight"
"""A diffusers file with this has one."""

PUBLISHED_WIDTHS = {128, 256, 512, 96, 192, 384}
"""Of the levels of latent-diffusion's, Stable Diffusion's and Flux's autoencoders, and of Flux.2's small decoder."""

RELATIVES = ("bn.running_mean", "quantize.embedding.weight")
"""Keys of families that have all of a KL autoencoder's keys."""


class KL(Family):
    """Encoder and decoder of levels, with 1x1 convolutions around the latents in older ones."""

    name = "kl"
    title = "ldm KL autoencoder"
    layouts: ClassVar[tuple[Layout, ...]] = (
        replace(LDM, forbidden=(*VIDEO_MARKS, *RELATIVES)),
        replace(DIFFUSERS, forbidden=(*OLD_ATTENTION_MARKS, VIDEO_DIFFUSERS_MARK, *RELATIVES)),
        replace(OLD_DIFFUSERS, forbidden=(VIDEO_DIFFUSERS_MARK, *RELATIVES)),
    )
    fixed: ClassVar[Mapping[str, tuple[str, ...]]] = {"act_fn": ("silu", "swish")}
    reads: ClassVar[tuple[str, ...]] = ("norm_num_groups", "dropout", "double_z", "tanh_out", "give_pre_end")
    users: ClassVar[Mapping[tuple[int, int], tuple[Users, ...]]] = {
        (4, 8): (users("sd"), users("sdxl")),
        (16, 8): (users("sd3"), users("flux")),
        (4, 4): (Users("Stable Diffusion x4-upscaler", 0.08333),),
    }
    classes = frozenset({"AutoencoderKL", "AutoencodingEngine", "AutoencodingEngineLegacy"})
    children = frozenset({"encoder", "decoder", "quant_conv", "post_quant_conv", "regularization", "loss", "model_ema"})
    model_class = AbstractAutoencoder
    regularizers: ClassVar[tuple[str, ...]] = ("NoneType", "DiagonalGaussianRegularizer")

    def core_keys(self, layout: str) -> tuple[str, ...]:
        names = ("conv_in.weight", "mid.block_1.norm1.weight", "mid.block_1.conv1.weight", "mid.block_2.conv2.weight")
        ends = ("up.0.block.0.conv1.weight", "norm_out.weight", "conv_out.weight")
        return tuple(f"decoder.{name}" for name in (*names, *ends))

    def infer(self, shapes: Shapes, hints: Hints) -> KLConfig:
        """Everything from tensors but what `settings` writes; encoder and decoder each on their own."""
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

    def build(self, config: Any) -> nn.Module:
        return build_kl(config)

    def settings(self, model: Any) -> dict[str, str]:
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

    def unread_settings(self, config: KLConfig) -> list[str]:
        halves = config.halves.values()
        found = [name for name in ("tanh_out", "give_pre_end") if getattr(config, name) and config.decoder]
        found += ["resamp_with_conv False"] * any(not half.resamp_with_conv for half in halves)
        found += ["conv_shortcut"] * any(half.conv_shortcut for half in halves)
        return found + ["norms of other groups in each half"] * any(half.num_groups is not None for half in halves)

    def passed_over(self, config: KLConfig) -> list[str]:
        if config.num_groups == 32:
            return []
        widths = [width for half in config.halves.values() for width in (half.ch, *half.widths)]
        return [] if any(width % 32 for width in widths) else [f"norm_num_groups {config.num_groups}"]

    def diffusers_config(self, config: KLConfig, hints: Hints) -> dict[str, Any]:
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

    def notes_on_folder(self, fields: Mapping[str, Any]) -> list[str]:
        usual = fields["_class_name"] == "AutoencoderKL" and "scaling_factor" not in fields
        missing = "config.json without scaling_factor, which the source does not tell; diffusers takes 0.18215"
        return [missing] if usual else []

    def users_of(self, config: KLConfig) -> tuple[Users, ...]:
        quantised = config.latent_channels == 4  # later ones have no convolutions around the latents
        return super().users_of(config) if config.post_quant_conv == quantised else ()

    def convention(self, config: KLConfig) -> str:
        told = super().convention(config)
        return told if config.double_z else told.removesuffix(" mean of the posterior")

    def untold_settings(self, config: KLConfig, hints: Hints) -> list[str]:
        told = any(name.endswith("norm_num_groups") for name in hints)
        return [] if told else [f"groups of the norms, taken as {config.num_groups}"]

    def assumed(self, config: KLConfig, hints: Hints) -> dict[str, object]:
        """None of those whose widths are everybody's: all of them have 32 groups."""
        widths = {width for half in config.halves.values() for width in (half.ch, *half.widths)}
        if widths <= PUBLISHED_WIDTHS or any(name.endswith("norm_num_groups") for name in hints):
            return {}
        ends: dict[str, object] = {
            name: False for name in ("tanh_out", "give_pre_end") if config.decoder and name not in hints
        }
        return {"norm_num_groups": config.num_groups, **ends}

    def untiled_elements(self, config: KLConfig, direction: str) -> float:
        return coder_elements(config, direction, (config.in_channels, config.out_ch))

    def encode(self, model: Any, x: Tensor, latent_channels: int) -> Tensor:
        moments, _ = model.encode(x, unregularized=True)
        return moments[:, :latent_channels]  # the mean; without a log-variance it is all there is

    def decoder(self, model: Any) -> Coder:
        self.require_known(model, "decoder", "decode")
        return Coder(build_program(model.decoder, before=getattr(model, "post_quant_conv", None)))

    def encoder(self, model: Any, latent_channels: int) -> Coder:
        self.require_known(model, "encoder", "encode")
        regularization = getattr(model, "regularization", None)
        if type(regularization).__name__ not in self.regularizers:
            raise UnsupportedModule(f"regularization: expected a Gaussian, got {describe(regularization)}")
        program = build_program(model.encoder, after=getattr(model, "quant_conv", None))
        return self.finished(model, Coder(program), latent_channels)

    def finished(self, model: Any, coder: Coder, latent_channels: int) -> Coder:
        """The encoder with what comes behind its moments."""
        require_moments(model, coder.program, latent_channels)
        return Coder(coder.program, coder.prepare, lambda rows: rows[:, :latent_channels])


def image_fields(config: KLConfig) -> dict[str, Any]:
    """Of the config.json of every image model; InputError for halves that diffusers cannot build together."""
    encoder, decoder = both_halves(config.encoder, config.decoder)
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


def _blocks(levels: LevelsConfig, name: str) -> list[str]:
    return [f"Attn{name}" if level in levels.attn_levels else name for level in range(len(levels.widths))]


def infer_levels(shapes: Shapes, hints: Hints, half: str) -> LevelsConfig | None:
    if f"{half}.conv_in.weight" not in shapes:
        return None
    stack, resampling = ("down", "downsample") if half == "encoder" else ("up", "upsample")
    stack = f"{half}.{stack}"
    count = consecutive(shapes, f"{stack}.{{}}.block.0.conv1.weight")
    widths = tuple(shapes[f"{stack}.{level}.block.0.conv1.weight"][0] for level in range(count))
    blocks = consecutive(shapes, f"{stack}.0.block.{{}}.conv1.weight")
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


def _groups(half: nn.Module) -> Iterator[int]:
    yield from (layer.num_groups for layer in half.modules() if isinstance(layer, nn.GroupNorm))


def _dropout(half: nn.Module) -> Iterator[float]:
    yield from (float(layer.dropout.p) for layer in half.modules() if isinstance(layer, ResnetBlock))


def _shortest(name: str, values: Mapping[str, object]) -> dict[str, str]:
    """One entry where the halves agree, else one for each."""
    if len({*values.values()}) == 1:
        return {name: str(next(iter(values.values())))}
    return {f"{half}_{name}": str(value) for half, value in values.items()}
