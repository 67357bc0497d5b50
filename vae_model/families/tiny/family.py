"""The tiny autoencoders as a family: TAESD and its relatives for every large model, TAEF2 and TAESana."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...exact.ops.squares import shuffled_first, unshuffled_last
from ..coder import Coder
from ..family import Family, Shapes, latent_shape, refuse
from ..hints import UNKNOWN, Hints
from ..latent_formats import LATENT_FORMATS, Users, formats_of, users
from ..layout import SCALARS, Layout, Rule
from .coder import ACTIVATIONS, UPSAMPLE_MODES
from .config import TinyConfig, tiny_elements
from .infer import infer_tiny, join_hints, pipeline_numbers, settle
from .model import AutoencoderTiny
from .program import hosted_decoder, hosted_encoder, is_hosted, limit, tiny_program

_MARKS = ("decoder.layers.0.weight", "encoder.layers.0.weight")
_COMFYUI_MARKS = ("taesd_decoder.1.weight", "taesd_encoder.0.weight")
_ENCODER, _DECODER = "encoder.layers.{k}.{rest}", "decoder.layers.{k}.{rest}"
_DIFFUSERS_RULES: tuple[Rule, ...] = (("{c}.layers.{k}.{rest}", "{c}.layers.{k}.{rest}"),)
_ENCODER_RULES: tuple[Rule, ...] = (("{k}.{rest}", _ENCODER),)
_DECODER_RULES: tuple[Rule, ...] = (("{k+1}.{rest}", _DECODER),)
_COMFYUI_RULES: tuple[Rule, ...] = (("taesd_encoder.{k}.{rest}", _ENCODER), ("taesd_decoder.{k+1}.{rest}", _DECODER))
_PATCH = 2
"""Side of the squares of its cells in the latents of Flux.2's own autoencoder."""

_WIDTH = 64
"""Of every stage of all that are published."""


class Tiny(Family):
    """Small networks without norms, on latents that were scaled."""

    name = "tiny"
    title = "TAESD tiny autoencoder"
    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("taesd-diffusers", "tiny", _MARKS, _DIFFUSERS_RULES, alias="diffusers", unread="known"),
        Layout("taesd-encoder", "tiny", ("0.weight",), _ENCODER_RULES, alias="encoder", left_out="decoder"),
        Layout(
            "taesd-decoder", "tiny", ("1.weight",), _DECODER_RULES, ("0.weight",), alias="decoder", left_out="encoder"
        ),
        Layout("taesd-comfyui", "tiny", _COMFYUI_MARKS, _COMFYUI_RULES, alias="comfyui"),
    )
    fixed: ClassVar[Mapping[str, tuple[str, ...]]] = {"act_fn": tuple(ACTIVATIONS), "upsample_fn": UPSAMPLE_MODES}
    reads: ClassVar[tuple[str, ...]] = (
        *("act_fn", "upsample_fn", "upsampling_scaling_factor", "latent_magnitude", "latent_shift", "force_upcast"),
        *("scaling_factor", "shift_factor", "latent_format", "vae_scale", "vae_shift"),
    )
    users: ClassVar[Mapping[tuple[int, int], tuple[Users, ...]]] = {
        (4, 8): (users("sd", "TAESD"), users("sdxl", "TAESDXL")),
        (16, 8): (users("sd3", "TAESD3"), users("flux", "TAEF1")),
        (32, 8): (users("flux2", "TAEF2, on the normalised latents of Flux.2"),),
    }
    plain_names = True
    classes = frozenset({"AutoencoderTiny"})
    children = frozenset()
    model_class = AutoencoderTiny

    def core_keys(self, layout: str) -> tuple[str, ...]:
        encoder = ("encoder.layers.0.weight", "encoder.layers.1.conv.0.weight", "encoder.layers.2.weight")
        decoder = ("decoder.layers.0.weight", "decoder.layers.2.conv.0.weight", "decoder.layers.6.weight")
        return encoder if layout == "taesd-encoder" else decoder

    def infer(self, shapes: Shapes, hints: Hints) -> TinyConfig:
        return infer_tiny(shapes, hints)

    def build(self, config: Any) -> nn.Module:
        arguments = dict(vars(config))
        latent_format = arguments.pop("latent_format")
        model = AutoencoderTiny(**arguments)
        model.latent_format = latent_format
        return model

    def settings(self, model: AutoencoderTiny) -> dict[str, str]:
        """All of them, the usual values too: a config.json that happens to lie beside the file is to change nothing."""
        found = {name: str(model.config[name]) for name in ("act_fn", "upsample_fn", "upsampling_scaling_factor")}
        found |= {name: repr(float(getattr(model, name))) for name in ("latent_magnitude", "latent_shift")}
        found |= {"force_upcast": str(bool(model.force_upcast)), "latent_format": model.latent_format or UNKNOWN}
        return found | {name: repr(number) for name, number in model.told_numbers().items()}

    def join_hints(self, told: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
        return join_hints(told, given)

    def beside(self, model: AutoencoderTiny, layout: str, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scale and shift, as ComfyUI keeps them."""
        told = model.told_numbers() if layout == "taesd-comfyui" else {}
        return {name: torch.tensor(number) for name, number in told.items()}

    def unread_settings(self, config: TinyConfig) -> list[str]:
        usual, names = TinyConfig(), ("act_fn", "upsample_fn", "upsampling_scaling_factor")
        names = names if config.decoder_block_out_channels else names[:1]
        return [f"{name} {getattr(config, name)}" for name in names if getattr(config, name) != getattr(usual, name)]

    def diffusers_config(self, config: TinyConfig, hints: Hints) -> dict[str, Any]:
        encoder, decoder = config.encoder_block_out_channels, config.decoder_block_out_channels
        if encoder is None or decoder is None:
            raise refuse("encoder and decoder", "one of them")
        if config.midblock_gn or config.strided_stem:
            raise refuse("a network of TAESD's kind", "TAEF2's or TAESana's")
        if len({*encoder, *decoder}) > 1:
            raise refuse("stages of one width", f"{encoder} and {decoder}")
        ours = ("latent_format", "midblock_gn", "strided_stem")
        told = {name: value for name, value in vars(config).items() if name not in ours}
        scale, shift = pipeline_numbers(config.latent_format, config.scaling_factor, config.shift_factor)
        return {
            "_class_name": "AutoencoderTiny",
            **{name: list(value) if isinstance(value, tuple) else value for name, value in told.items()},
            "scaling_factor": scale,
            "shift_factor": shift,
        }

    # -- latents ----------------------------------------------------------------------------------------------------

    def settle(
        self, config: Any, hints: Hints, files: Sequence[str], wanted: str | None = None
    ) -> tuple[Any, dict[str, str]]:
        return settle(config, hints, files, wanted)

    def knows_raw(self, config: TinyConfig, hints: Hints) -> bool:
        """Of one whose scale and shift are not known, its own latents are given instead."""
        told = config.latent_format is not None or not hints.keys().isdisjoint(SCALARS)
        return told or (config.scaling_factor, config.shift_factor) != (1.0, 0.0) or len(self.users_of(config)) == 1

    def scale_and_shift(self, config: TinyConfig, hints: Hints) -> str:
        """Between raw latents and the network itself."""
        numbers = f"{config.scaling_factor:g} and {config.shift_factor:g}"
        if config.latent_format is not None:
            return f"{numbers}, of {LATENT_FORMATS[config.latent_format].models}"
        return self.scale_of_users(config) if hints.keys().isdisjoint(SCALARS) else f"{numbers}, from the file"

    def convention(self, config: TinyConfig) -> str:
        shape = latent_shape(config)
        if config.decode_factor != config.factor:
            shape = f"{shape}, decoded to {config.decode_factor} pixels a cell"
        return f"{shape}, raw; the network works on (latent - {config.shift_factor:g}) * {config.scaling_factor:g}"

    def untold(self, config: TinyConfig, hints: Hints) -> list[str]:
        if self.knows_raw(config, hints) or len(self.users_of(config)) == 1:
            return []
        known = self.listed_users(config)
        return [f"scale and shift, taken as 1 and 0{f'; of {known}' if known else ''}"]

    def assumed(self, config: TinyConfig, hints: Hints) -> dict[str, object]:
        """None of those as wide as TAESD, nor of TAEF2's and TAESana's kind."""
        usual = all({*widths} == {_WIDTH} for widths in config.widths_of_halves.values())
        if usual or config.midblock_gn or config.strided_stem:
            return {}
        names = ("act_fn", "upsample_fn") if config.decoder_block_out_channels else ("act_fn",)
        return {name: getattr(config, name) for name in names if name not in hints}

    def not_raw(self, config: TinyConfig) -> str:
        return (
            "latents: expected a tiny VAE whose scale is known, got one that neither its file nor its name tells: its "
            "latents are its own, not raw; say latent_format (--latent-format): "
            f"{', '.join(formats_of(config.latent_channels))}"
        )

    def pack_latents(self, model: AutoencoderTiny, config: TinyConfig) -> None:
        """Flux.2's own autoencoder has squares of such cells in its channels."""
        known = config.latent_format in (None, "flux2")
        if known and (config.latent_channels, config.factor) == (32, 8):
            model.latent_patch = _PATCH

    def latent_patch(self, model: AutoencoderTiny) -> int:
        return model.latent_patch

    # -- running ----------------------------------------------------------------------------------------------------

    def untiled_elements(self, config: TinyConfig, direction: str) -> float:
        return tiny_elements(config, direction)

    def decode(self, model: AutoencoderTiny, z: Tensor, timesteps: int | None = None) -> Tensor:
        cells = functional.pixel_shuffle(z, model.latent_patch)
        return model.decode((cells - model.shift_factor) * model.scaling_factor)[0]

    def encode(self, model: AutoencoderTiny, x: Tensor, latent_channels: int) -> Tensor:
        cells = model.encode(x)[0] / model.scaling_factor + model.shift_factor
        return functional.pixel_unshuffle(cells, model.latent_patch)

    def knows(self, model: Any) -> bool:
        return is_hosted(model) or isinstance(model, AutoencoderTiny)

    def decoder(self, model: Any) -> Coder:
        if is_hosted(model):
            self.require_known(model, "taesd_decoder", "decode")
            return hosted_decoder(model)
        self.require_known(model, "decoder", "decode")
        shift, scale = model.shift_factor, model.scaling_factor
        program = tiny_program(model.decoder)
        program = program if model.latent_patch == 1 else shuffled_first(program, None)
        return Coder(program, lambda rows: limit((rows - shift).mul_(scale)), lambda rows: rows * 2 - 1)

    def encoder(self, model: Any, latent_channels: int) -> Coder:
        if is_hosted(model):
            self.require_known(model, "taesd_encoder", "encode")
            return hosted_encoder(model)
        self.require_known(model, "encoder", "encode")
        shift, scale = model.shift_factor, model.scaling_factor
        program = tiny_program(model.encoder)
        program = program if model.latent_patch == 1 else unshuffled_last(program, None, latent_channels)
        return Coder(program, lambda rows: (rows + 1).div_(2), lambda rows: rows / scale + shift)
