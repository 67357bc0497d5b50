"""Qwen-Image 2.1's autoencoder as a family: images with alpha, nothing over frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from ...exact.read import describe
from ..coder import Coder, require_moments
from ..family import Family, Shapes, refuse
from ..hints import Hints
from ..latent_formats import Users
from ..layout import Layout
from ..ldm.config import LevelsConfig
from ..ldm.memory import ATTENTION, DOWNSAMPLE, UPSAMPLE, level_channels
from .config import QwenImage21Config
from .latents import DEVIATIONS, MEANS
from .model import QwenImage21VAE
from .names import BLOCKS, DIFFUSERS, WAN
from .program import UNITS, qwen_program


class QwenImage21(Family):
    """Wan 2.2's network for images: norms over every pixel's channels, shortcuts beside whole levels."""

    name = "qwen_image_21"
    title = "Qwen-Image 2.1 autoencoder"
    layouts: ClassVar[tuple[Layout, ...]] = (WAN, DIFFUSERS)
    fixed: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "attn_scales": ("[]",),
        "is_residual": ("True",),
        "patch_size": ("None", "1"),
    }
    users: ClassVar[Mapping[tuple[int, int], tuple[Users, ...]]] = {
        (64, 16): (Users("Qwen-Image 2.1", 1.0, 0.0, MEANS, DEVIATIONS),)
    }
    adds_alpha = True
    classes = frozenset({"QwenImage21VAE"})
    children = frozenset({"encoder", "decoder", "conv1", "conv2"})

    def core_keys(self, layout: str) -> tuple[str, ...]:
        first = ("conv1.weight", "middle.0.residual.2.weight", "middle.1.to_qkv.weight")
        names = (*first, "upsamples.0.upsamples.0.residual.2.weight", "head.2.weight")
        return ("conv2.weight", *(f"decoder.{name}" for name in names))

    def infer(self, shapes: Shapes, hints: Hints) -> QwenImage21Config:
        encoder = decoder = None
        over_time: list[bool] = []
        if "decoder.conv1.weight" in shapes:
            widths, blocks, over_time = _units(shapes, "decoder.upsamples.{}.upsamples")
            decoder = LevelsConfig(widths[-1], tuple(widths[::-1]), blocks - 1)
            over_time.reverse()
        if "encoder.conv1.weight" in shapes:
            widths, blocks, over_time = _units(shapes, "encoder.downsamples.{}.downsamples")
            encoder = LevelsConfig(shapes["encoder.conv1.weight"][0], tuple(widths), blocks)
        return QwenImage21Config(
            shapes["decoder.conv1.weight"][1] if decoder else shapes["encoder.head.2.weight"][0] // 2,
            encoder,
            decoder,
            tuple(over_time),
            in_channels=shapes["encoder.conv1.weight"][1] if encoder else 4,
            out_channels=shapes["decoder.head.2.weight"][0] if decoder else 4,
        )

    def build(self, config: Any) -> nn.Module:
        return QwenImage21VAE(config)

    def owns(self, model: nn.Module) -> bool:
        return isinstance(model, QwenImage21VAE)

    def diffusers_config(self, config: QwenImage21Config, hints: Hints) -> dict[str, Any]:
        encoder, decoder = config.encoder, config.decoder
        if encoder is None or decoder is None:
            raise refuse("encoder and decoder", "one of them")
        base = encoder.ch, decoder.widths[0] * encoder.ch / encoder.widths[0]
        factors = [[width / unit for width in half.widths] for half, unit in zip((encoder, decoder), base, strict=True)]
        whole = all(factor == int(factor) for factor in factors[0]) and base[1] == int(base[1])
        blocks = {encoder.num_res_blocks, decoder.num_res_blocks}
        if factors[0] != factors[1] or not whole or blocks != {BLOCKS}:
            raise refuse(f"halves of {BLOCKS} blocks a level, widths in proportion", f"{encoder} and {decoder}")
        return {
            "_class_name": "AutoencoderKLQwenImage21",
            "attn_scales": [],
            "base_dim": encoder.ch,
            "decoder_base_dim": int(base[1]),
            "dim_mult": [int(factor) for factor in factors[0]],
            "dropout": 0.0,
            "in_channels": config.in_channels,
            "is_residual": True,
            "num_res_blocks": BLOCKS,
            "out_channels": config.out_channels,
            "patch_size": None,
            "scale_factor_spatial": config.factor,
            "scale_factor_temporal": 2 ** sum(config.over_time),
            "temperal_downsample": list(config.over_time),
            "z_dim": config.latent_channels,
        }

    def untiled_elements(self, config: QwenImage21Config, direction: str) -> float:
        """As for KL; what goes into a level stays to its end, for its shortcut."""
        encodes = direction == "encode"
        levels = config.encoder if encodes else config.decoder
        if levels is None:
            return 0.0
        numbers = list(range(len(levels.widths)))
        last, start = (numbers[-1], levels.ch) if encodes else (0, levels.widths[-1])
        worst = level_channels(levels.widths[-1], levels.widths[-1], 2, ATTENTION["vanilla"]) * 4.0 ** -numbers[-1]
        for level in numbers if encodes else reversed(numbers):
            width, blocks = levels.widths[level], levels.num_res_blocks + (not encodes)
            resampling = 0 if level == last else DOWNSAMPLE if encodes else UPSAMPLE
            later = start + level_channels(width, width, blocks, resampling=resampling)
            worst = max(worst, max(level_channels(start, width, 1), later) * 4.0**-level)
            start = width
        if encodes:
            return worst + config.in_channels  # the image is held throughout
        return max(worst, 2.0 * levels.widths[0] + config.out_channels)  # the last norm and convolution

    def knows(self, model: Any) -> bool:
        """The host has it in the class of Wan 2.2, which sees three frames where this sees one."""
        if super().knows(model):
            return True
        if describe(model) != "WanVAE" or getattr(model, "patch_size", 1) != 1:
            return False
        halves: list[Any] = [getattr(model, half, None) for half in ("encoder", "decoder")]
        rows = [getattr(half, name, None) for half in halves for name in ("downsamples", "upsamples")]
        units = {type(row[0]).__name__ for row in rows if row}
        taps = {half.conv1.kernel_size[0] for half in halves if hasattr(half, "conv1")}
        return bool(units) and units <= {*UNITS} and taps == {1}

    def decoder(self, model: Any) -> Coder:
        self.require_known(model, "decoder", "decode")
        return Coder(qwen_program(model.decoder, before=model.conv2))

    def encoder(self, model: Any, latent_channels: int) -> Coder:
        self.require_known(model, "encoder", "encode")
        program = qwen_program(model.encoder, after=model.conv1)
        require_moments(model, program, latent_channels)
        return Coder(program, finish=lambda rows: rows[:, :latent_channels])


def _units(shapes: Shapes, row: str) -> tuple[list[int], int, list[bool]]:
    """The level widths, the blocks of a level, whether steps to the next level are over time, too."""
    widths, blocks = list[int](), 0
    while f"{row.format(0)}.{blocks}.residual.2.weight" in shapes:
        blocks += 1
    while f"{row.format(len(widths))}.0.residual.2.weight" in shapes:
        widths.append(shapes[f"{row.format(len(widths))}.0.residual.2.weight"][0])
    steps = range(len(widths) - 1)
    return widths, blocks, [f"{row.format(step)}.{blocks}.time_conv.weight" in shapes for step in steps]
