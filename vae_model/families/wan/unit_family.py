"""What the families have in common whose levels are units with shortcuts: Wan 2.2 and Qwen-Image 2.1."""

from __future__ import annotations

from typing import Any, ClassVar

from ...exact.ops.squares import pixels_first, pixels_last
from ...exact.read import describe
from ..coder import Coder, require_moments
from ..family import Family, Shapes, both_halves, refuse
from ..hints import Hints, consecutive
from ..ldm.config import LevelsConfig
from ..ldm.memory import ATTENTION, DOWNSAMPLE, UPSAMPLE, level_channels
from .unit_config import UnitConfig
from .unit_layers import PATCH
from .unit_names import BLOCKS
from .unit_program import has_units, taps_of, unit_program


class UnitFamily(Family):
    """Norms over every pixel's channels, shortcuts beside whole levels."""

    config_class: ClassVar[type[UnitConfig]]
    diffusers_class: ClassVar[str]
    children = frozenset({"encoder", "decoder", "conv1", "conv2"})

    def core_keys(self, layout: str) -> tuple[str, ...]:
        first = ("conv1.weight", "middle.0.residual.2.weight", "middle.1.to_qkv.weight")
        names = (*first, "upsamples.0.upsamples.0.residual.2.weight", "head.2.weight")
        return ("conv2.weight", *(f"decoder.{name}" for name in names))

    def infer(self, shapes: Shapes, hints: Hints) -> UnitConfig:
        encoder = decoder = None
        over_time: list[bool] = []
        pixels, images = self.config_class.patch**2, dict[str, int]()
        if "decoder.conv1.weight" in shapes:
            widths, blocks, over_time = _units(shapes, "decoder.upsamples.{}.upsamples")
            decoder = LevelsConfig(widths[-1], tuple(widths[::-1]), blocks - 1)
            over_time.reverse()
            images["out_channels"] = shapes["decoder.head.2.weight"][0] // pixels
        if "encoder.conv1.weight" in shapes:
            widths, blocks, over_time = _units(shapes, "encoder.downsamples.{}.downsamples")
            encoder = LevelsConfig(shapes["encoder.conv1.weight"][0], tuple(widths), blocks)
            images["in_channels"] = shapes["encoder.conv1.weight"][1] // pixels
        latent_channels = shapes["decoder.conv1.weight"][1] if decoder else shapes["encoder.head.2.weight"][0] // 2
        return self.config_class(latent_channels, encoder, decoder, tuple(over_time), **images)

    def diffusers_config(self, config: UnitConfig, hints: Hints) -> dict[str, Any]:
        (encoder, decoder), pixels = both_halves(config.encoder, config.decoder), config.patch**2
        base = encoder.ch, decoder.widths[0] * encoder.ch / encoder.widths[0]
        factors = [[width / unit for width in half.widths] for half, unit in zip((encoder, decoder), base, strict=True)]
        whole = all(factor == int(factor) for factor in factors[0]) and base[1] == int(base[1])
        blocks = {encoder.num_res_blocks, decoder.num_res_blocks}
        if factors[0] != factors[1] or not whole or blocks != {BLOCKS}:
            raise refuse(f"halves of {BLOCKS} blocks a level, widths in proportion", f"{encoder} and {decoder}")
        return {
            "_class_name": self.diffusers_class,
            "attn_scales": [],
            "base_dim": encoder.ch,
            "decoder_base_dim": int(base[1]),
            "dim_mult": [int(factor) for factor in factors[0]],
            "dropout": 0.0,
            "in_channels": pixels * config.in_channels,
            "is_residual": True,
            "num_res_blocks": BLOCKS,
            "out_channels": pixels * config.out_channels,
            "patch_size": None if config.patch == 1 else config.patch,
            "scale_factor_spatial": config.factor,
            "scale_factor_temporal": config.time_factor,
            "temperal_downsample": list(config.over_time),
            "z_dim": config.latent_channels,
        }

    def untiled_elements(self, config: UnitConfig, direction: str) -> float:
        """As for KL; what goes into a level stays to its end, for its shortcut."""
        encodes, pixels = direction == "encode", config.patch**2
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
        if encodes:  # the image is held throughout, and what the network sees of it
            return worst / pixels + config.in_channels * (1 + (pixels > 1))
        ending = 2.0 * levels.widths[0] + pixels * config.out_channels  # the last norm and convolution
        return max(worst, ending) / pixels

    def knows(self, model: Any) -> bool:
        """The host has two networks in one class: what tells them apart are patches, and how many frames they see."""
        if super().knows(model):
            return True
        taps = {taps_of(getattr(model, half)) for half in ("encoder", "decoder") if hasattr(model, half)}
        patch = getattr(model, "patch_size", self.config_class.patch)  # an older host has one of the two, and no word
        is_this = taps == {self.config_class.taps} and patch == self.config_class.patch
        return is_this and describe(model) == "WanVAE" and has_units(model)

    def decoder(self, model: Any) -> Coder:
        self.require_known(model, "decoder", "decode")
        program = unit_program(model.decoder, before=model.conv2)
        return Coder(pixels_last(program, PATCH) if self.config_class.patch > 1 else program)

    def encoder(self, model: Any, latent_channels: int) -> Coder:
        self.require_known(model, "encoder", "encode")
        program = unit_program(model.encoder, after=model.conv1)
        require_moments(model, program, latent_channels)
        program = pixels_first(program, PATCH) if self.config_class.patch > 1 else program
        return Coder(program, finish=lambda rows: rows[:, :latent_channels])


def _units(shapes: Shapes, row: str) -> tuple[list[int], int, list[bool]]:
    """The level widths, the blocks of a level, whether steps to the next level are over time, too."""
    first = f"{row}.0.residual.2.weight"
    widths = [shapes[first.format(level)][0] for level in range(consecutive(shapes, first))]
    blocks = consecutive(shapes, f"{row.format(0)}.{{}}.residual.2.weight")
    steps = range(len(widths) - 1)
    return widths, blocks, [f"{row.format(step)}.{blocks}.time_conv.weight" in shapes for step in steps]
