"""Wan 2.1's and Qwen-Image's autoencoder as a family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ...exact.ops.squares import PIXEL_SHUFFLE, pixels_last
from ..coder import Coder, require_moments
from ..family import Family, Shapes, both_halves, latent_shape, refuse
from ..hints import Hints
from ..latent_formats import Users
from ..layout import Layout
from ..ldm.config import LevelsConfig
from ..ldm.memory import coder_elements
from .config import WanConfig
from .model import WanVAE
from .names import WAN_DIFFUSERS_MARKS, WAN_DIFFUSERS_RULES, WAN_MARKS, WAN_RULES
from .program import wan_program

QWEN_CLASS = "AutoencoderKLQwenImage"
_MEANS = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
_DEVIATIONS = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)


class Wan(Family):
    """Causal in time; norms over every pixel's channels. A single frame is a picture."""

    name = "wan"
    title = "Wan 2.1 or Qwen-Image autoencoder"
    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("wan", "wan", WAN_MARKS, WAN_RULES, unread="told"),
        Layout("diffusers", "wan", WAN_DIFFUSERS_MARKS, WAN_DIFFUSERS_RULES),
    )
    fixed: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "attn_scales": ("[]",),
        "is_residual": ("False",),
        "patch_size": ("None",),
    }
    users: ClassVar[Mapping[tuple[int, int], tuple[Users, ...]]] = {
        (16, 8): (Users("Wan 2.1, Qwen-Image and relatives", 1.0, 0.0, _MEANS, _DEVIATIONS),)
    }
    has_frames = True
    frame_rate = 16
    adds_alpha = True
    classes = frozenset({"WanVAE"})
    children = frozenset({"encoder", "decoder", "conv1", "conv2", "shuffle"})
    model_class = WanVAE

    def core_keys(self, layout: str) -> tuple[str, ...]:
        first = ("conv1.weight", "middle.0.residual.2.weight", "middle.1.to_qkv.weight")
        names = (*first, "upsamples.0.residual.2.weight", "head.2.weight")
        return ("conv2.weight", *(f"decoder.{name}" for name in names))

    def infer(self, shapes: Shapes, hints: Hints) -> WanConfig:
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

    def diffusers_config(self, config: WanConfig, hints: Hints) -> dict[str, Any]:
        """diffusers has the same network in two classes; whose latents they are is all that tells them apart."""
        (encoder, decoder), qwen = both_halves(config.encoder, config.decoder), hints.get("_class_name") == QWEN_CLASS
        factors = [width / encoder.ch for width in encoder.widths]
        unit = decoder.widths[0] / factors[0]  # in which the decoder's first width is as the encoder's
        whole = all(factor == int(factor) for factor in factors)
        in_proportion = [width / unit for width in decoder.widths] == factors
        if encoder.num_res_blocks != decoder.num_res_blocks or not whole or not in_proportion:
            raise refuse("an encoder as deep as its decoder, widths in proportion", f"{encoder} and {decoder}")
        fields: dict[str, Any] = {
            "_class_name": QWEN_CLASS if qwen else "AutoencoderKLWan",
            "attn_scales": [],
            "base_dim": encoder.ch,
            "dim_mult": [int(factor) for factor in factors],
            "dropout": 0.0,
            "num_res_blocks": encoder.num_res_blocks,
            "temperal_downsample": list(config.over_time),
            "z_dim": config.latent_channels,
        }
        same = encoder.widths == decoder.widths and config.in_channels == config.out_channels
        if qwen and not same:
            raise refuse(f"an encoder as wide as its decoder for {QWEN_CLASS}", f"{encoder} and {decoder}")
        if qwen:
            return fields | {"input_channels": config.in_channels}
        if encoder.widths != decoder.widths:
            fields["decoder_base_dim"] = int(unit)
        return fields | {"in_channels": config.in_channels, "out_channels": config.out_channels}

    def formats(self, config: Any) -> list[str]:
        return ["raw"]  # theirs have numbers for each channel

    def convention(self, config: Any) -> str:
        shape = latent_shape(config, f" (frames - 1) / {config.time_factor} + 1,")
        if config.decode_factor != config.factor:
            shape = f"{shape}, decoded to {config.decode_factor} pixels a cell"
        return f"{shape}, raw mean of the posterior"

    def untiled_elements(self, config: WanConfig, direction: str) -> float:
        elements = coder_elements(config, direction, (config.in_channels, config.out_channels), halving=True)
        return elements / (config.enlargement**2 if direction == "decode" else 1)

    def time_factor(self, config: Any) -> int:
        return config.time_factor

    def decoder(self, model: Any) -> Coder:
        self.require_known(model, "decoder", "decode")
        program = wan_program(model.decoder, before=model.conv2)
        # The host's own model has the same network and hands on squares of pixels as channels.
        return Coder(pixels_last(program, PIXEL_SHUFFLE) if hasattr(model, "shuffle") else program)

    def encoder(self, model: Any, latent_channels: int) -> Coder:
        self.require_known(model, "encoder", "encode")
        program = wan_program(model.encoder, after=model.conv1)
        require_moments(model, program, latent_channels)
        return Coder(program, finish=lambda rows: rows[:, :latent_channels])


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
