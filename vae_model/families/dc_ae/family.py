"""The deep compression autoencoder, DC-AE, as a family: Sana's, and those of 64 and 128 pixels a cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ..coder import Coder, require_moments
from ..family import Family, Shapes, both_halves, latent_shape, refuse
from ..hints import Hints
from ..latent_formats import Users
from ..layout import Layout
from .config import DCConfig, DCLevels
from .infer import HEAD_DIM, LAST_ACTIVATION, STEPS, USUAL, infer_dc
from .model import DCAutoencoder
from .names import DIFFUSERS, ORIGINAL, STRIDED
from .program import dc_program

_SANA = Users("Sana", 0.41407)
_BLOCK_TYPES = ("ResBlock", "EfficientViTBlock")
_RESIDUAL, _GATED = 3.0, 18.0
"""Planes that are live in a block of two convolutions, and in one with the gated one, which takes more than attention:
what goes in, the block's and its own, and twice all of its channels."""


class DCAE(Family):
    """Blocks of convolutions at large sizes, linear attention at small ones; nothing but its sums is global."""

    name = "dc_ae"
    title = "DC-AE autoencoder"
    layouts: ClassVar[tuple[Layout, ...]] = (DIFFUSERS, ORIGINAL)
    users: ClassVar[Mapping[tuple[int, int], tuple[Users, ...]]] = {
        (32, 32): (Users("DC-AE f32c32 in-1.0", 0.3189), Users("DC-AE f32c32 mix-1.0", 0.4552)),
        (128, 64): (Users("DC-AE f64c128 in-1.0", 0.2889), Users("DC-AE f64c128 mix-1.0", 0.4538)),
        (512, 128): (Users("DC-AE f128c512 in-1.0", 0.4883), Users("DC-AE f128c512 mix-1.0", 0.3620)),
    }
    reads: ClassVar[tuple[str, ...]] = (
        *("attention_head_dim", "encoder_out_shortcut", "decoder_in_shortcut"),
        *("decoder_act_fns", "decoder_conv_act_fn", "decoder_norm_types", "encoder_act_fns", *STEPS),
    )
    classes = frozenset({"DCAutoencoder"})
    children = frozenset({"encoder", "decoder"})
    model_class = DCAutoencoder

    def core_keys(self, layout: str) -> tuple[str, ...]:
        return ("decoder.conv_in.weight", "decoder.norm_out.weight", "decoder.norm_out.bias")

    def infer(self, shapes: Shapes, hints: Hints) -> DCConfig:
        return infer_dc(shapes, hints)

    def layout_of(self, model: DCAutoencoder, layout: Layout) -> Layout:
        encoder = model.config.encoder
        return STRIDED if layout is ORIGINAL and encoder is not None and not encoder.pixels else layout

    def settings(self, model: DCAutoencoder) -> dict[str, str]:
        config = model.config
        found = {"attention_head_dim": str(config.head_dim)}
        if config.encoder:
            found["encoder_out_shortcut"] = str(config.encoder.shortcut)
            found[STEPS[0]] = "pixel_unshuffle" if config.encoder.pixels else "Conv"
            found["encoder_act_fns"] = str([stage.activation for stage in config.encoder.stages])
        if config.decoder:
            found |= {
                "decoder_act_fns": str([stage.activation for stage in config.decoder.stages]),
                "decoder_conv_act_fn": config.last_activation,
                STEPS[1]: "pixel_shuffle" if config.decoder.pixels else "interpolate",
                "decoder_in_shortcut": str(config.decoder.shortcut),
            }
        return found

    def unread_settings(self, config: DCConfig) -> list[str]:
        found = [f"{half} without shortcut" for half, levels in config.halves.items() if not levels.shortcut]
        stages = [(half, stage) for half, levels in config.halves.items() for stage in levels.stages]
        other = {f"{half} activation {s.activation}" for half, s in stages if s.blocks and not s.attends and _odd(s)}
        if config.last_activation != LAST_ACTIVATION:
            found.append(f"decoder_conv_act_fn {config.last_activation}")
        if config.head_dim != HEAD_DIM and any(stage.attends and not stage.scales for _, stage in stages):
            found.append(f"attention_head_dim {config.head_dim}")
        return found + sorted(other)

    def diffusers_config(self, config: DCConfig, hints: Hints) -> dict[str, Any]:
        encoder, decoder = both_halves(config.encoder, config.decoder)
        if config.in_channels != config.out_channels:
            raise refuse("images of as many channels on both sides", f"{config.in_channels} and {config.out_channels}")
        odd = [stage for stage in encoder.stages if stage.blocks and (stage.norm != "rms_norm" or _odd(stage))]
        if odd:
            raise refuse("an encoder of RMSNorm and SiLU", f"{odd[0].norm} and {odd[0].activation}")
        fields: dict[str, Any] = {
            "_class_name": "AutoencoderDC",
            "attention_head_dim": config.head_dim,
            "decoder_act_fns": [stage.activation for stage in decoder.stages],
            "decoder_conv_act_fn": config.last_activation,
            "decoder_in_shortcut": decoder.shortcut,
            "decoder_norm_types": [stage.norm for stage in decoder.stages],
            "downsample_block_type": "pixel_unshuffle" if encoder.pixels else "Conv",
            "encoder_out_shortcut": encoder.shortcut,
            "in_channels": config.in_channels,
            "latent_channels": config.latent_channels,
            "upsample_block_type": "pixel_shuffle" if decoder.pixels else "interpolate",
        }
        for half, levels in config.halves.items():
            fields |= {
                f"{half}_block_out_channels": list(levels.widths),
                f"{half}_block_types": [_BLOCK_TYPES[stage.attends] for stage in levels.stages],
                f"{half}_layers_per_block": [stage.blocks for stage in levels.stages],
                f"{half}_qkv_multiscales": [list(stage.scales) for stage in levels.stages],
            }
        users = self.users_of(config)
        return fields | ({"scaling_factor": users[0].scale} if len(users) == 1 else {})

    def notes_on_folder(self, fields: Mapping[str, Any]) -> list[str]:
        if "scaling_factor" in fields:
            return []
        return ["config.json without scaling_factor, which the source does not tell; diffusers takes 1"]

    def users_of(self, config: DCConfig) -> tuple[Users, ...]:
        """Sana's is the one of its size that repeats pixels and leaves them out."""
        sana = (config.latent_channels, config.factor) == (32, 32) and not any(
            levels.pixels for levels in config.halves.values()
        )
        return (_SANA,) if sana else super().users_of(config)

    def convention(self, config: DCConfig) -> str:
        return f"{latent_shape(config)}, raw"

    # -- running ----------------------------------------------------------------------------------------------------

    def untiled_elements(self, config: DCConfig, direction: str) -> float:
        levels = config.encoder if direction == "encode" else config.decoder
        if levels is None:
            return 0.0
        worst = max(_live(levels, number, direction) * 4.0**-number for number in range(len(levels.stages)))
        if direction == "encode":
            return worst + config.in_channels  # the image is held throughout
        width, out = levels.widths[levels.steps_first], config.out_channels
        if levels.steps_first:  # what goes in, normalised, and either repeated, or the result in cells
            return max(worst, width / 2 + (out if levels.pixels else width) + out)
        return max(worst, 2.0 * width + out)  # the last norm and convolution

    def decoder(self, model: Any) -> Coder:
        self.require_known(model, "decoder", "decode")
        return Coder(dc_program(model.decoder))

    def encoder(self, model: Any, latent_channels: int) -> Coder:
        self.require_known(model, "encoder", "encode")
        program = dc_program(model.encoder)
        require_moments(model, program, latent_channels)
        return Coder(program)


def _odd(stage: Any) -> bool:
    """Whether its activation is not the one that goes with its norm."""
    return stage.activation != USUAL[stage.norm]


def _live(levels: DCLevels, number: int, direction: str) -> float:
    """Live channels at the worst moment of a level, in planes of its size."""
    stage = levels.stages[number]
    if not stage.blocks:
        return 0.0
    live = (_GATED if stage.attends else _RESIDUAL) * stage.width
    if number + 1 < len(levels.stages):
        inner = levels.stages[number + 1].width
        if direction == "encode":
            live = max(live, 2 * stage.width + inner / 2)  # what goes in, the same in cells, both results
        else:
            packed = 2.0 * stage.width + inner / 4  # repeated channels, and as pixels
            live = max(live, packed + stage.width, 0 if levels.pixels else inner * 1.25 + stage.width)
    return live
