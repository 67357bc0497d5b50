"""HunyuanImage 2.1's autoencoder as a family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ...exact.layer import UnsupportedModule
from ...exact.read import describe
from ..coder import Coder, require_moments
from ..family import Family, Shapes, both_halves, refuse
from ..hints import Hints, consecutive
from ..latent_formats import Users
from ..layout import Layout
from ..ldm.config import LevelsConfig
from ..ldm.memory import ATTENTION, level_channels
from .config import HunyuanImageConfig
from .model import HunyuanImageVAE
from .names import BLOCKS, DIFFUSERS, ORIGINAL
from .program import GATHERS, SPREADS, hunyuan_program

_SAMPLE_SIZE = 384
"""What diffusers' tiles are cut by: a field that its class wants, and that nothing here reads."""


class HunyuanImage(Family):
    """Convolutions with GroupNorm, as ldm's; between levels squares of pixels lie in channels."""

    name = "hunyuan_image"
    title = "HunyuanImage 2.1 autoencoder"
    layouts: ClassVar[tuple[Layout, ...]] = (ORIGINAL, DIFFUSERS)
    fixed: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "downsample_match_channel": ("True",),
        "upsample_match_channel": ("True",),
    }
    users: ClassVar[Mapping[tuple[int, int], tuple[Users, ...]]] = {(64, 32): (Users("HunyuanImage 2.1", 0.75289),)}
    classes = frozenset({"HunyuanImageVAE"})
    children = frozenset({"encoder", "decoder", "regularization"})
    model_class = HunyuanImageVAE

    def core_keys(self, layout: str) -> tuple[str, ...]:
        names = ("conv_in", "mid.block_1.conv1", "mid.attn_1.q", "up.0.upsample.conv", "norm_out", "conv_out")
        return tuple(f"decoder.{name}.weight" for name in names)

    def infer(self, shapes: Shapes, hints: Hints) -> HunyuanImageConfig:
        encoder = decoder = None
        if "decoder.conv_in.weight" in shapes:
            widths, blocks = _levels(shapes, "decoder.up")
            decoder = LevelsConfig(widths[-1], tuple(widths[::-1]), blocks - 1)
        if "encoder.conv_in.weight" in shapes:
            widths, blocks = _levels(shapes, "encoder.down")
            encoder = LevelsConfig(widths[0], tuple(widths), blocks)
        return HunyuanImageConfig(
            shapes["decoder.conv_in.weight"][1] if decoder else shapes["encoder.conv_out.weight"][0] // 2,
            encoder,
            decoder,
            in_channels=shapes["encoder.conv_in.weight"][1] if encoder else 3,
            out_channels=shapes["decoder.conv_out.weight"][0] if decoder else 3,
        )

    def diffusers_config(self, config: HunyuanImageConfig, hints: Hints) -> dict[str, Any]:
        encoder, decoder = both_halves(config.encoder, config.decoder)
        if encoder != decoder or encoder.num_res_blocks != BLOCKS:
            raise refuse(f"an encoder as wide as its decoder, of {BLOCKS} blocks a level", f"{encoder} and {decoder}")
        fields: dict[str, Any] = {
            "_class_name": "AutoencoderKLHunyuanImage",
            "block_out_channels": list(encoder.widths),
            "downsample_match_channel": True,
            "in_channels": config.in_channels,
            "latent_channels": config.latent_channels,
            "layers_per_block": encoder.num_res_blocks,
            "out_channels": config.out_channels,
            "sample_size": _SAMPLE_SIZE,
            "spatial_compression_ratio": config.factor,
            "upsample_match_channel": True,
        }
        users = self.users_of(config)
        return fields | ({"scaling_factor": users[0].scale} if users else {})

    def untiled_elements(self, config: HunyuanImageConfig, direction: str) -> float:
        """As for KL; a layer between levels holds its input, the convolution's result and its copy as pixels."""
        encodes = direction == "encode"
        levels = config.encoder if encodes else config.decoder
        if levels is None:
            return 0.0
        widths, deepest = levels.widths, len(levels.widths) - 1
        worst = level_channels(widths[-1], widths[-1], 2, ATTENTION["vanilla"]) * 4.0**-deepest
        for level, width in enumerate(widths):
            between = 0.0  # in planes
            if encodes and level < deepest:
                between = 1 + widths[level + 1] / width / 2
            elif not encodes and level:
                between = 1 + 8 * widths[level - 1] / width
            worst = max(worst, level_channels(width, width, levels.num_res_blocks, resampling=between) * 4.0**-level)
        if encodes:
            return worst + config.in_channels  # the image is held throughout
        return max(worst, 2.0 * widths[0] + config.out_channels)  # the last norm and convolution

    def knows(self, model: Any) -> bool:
        """The host has it in an engine of many networks: what stands between its levels tells."""
        if super().knows(model):
            return True
        if describe(model) != "AutoencodingEngine":
            return False
        halves: list[Any] = [getattr(model, half, None) for half in ("encoder", "decoder")]
        levels = [
            level for half in halves for level in (getattr(half, "up", None) or getattr(half, "down", None) or ())
        ]
        layers = [getattr(level, name, None) for level in levels for name in ("upsample", "downsample")]
        return any(type(layer).__name__ in (*SPREADS, *GATHERS) for layer in layers)

    def decoder(self, model: Any) -> Coder:
        self.require_known(model, "decoder", "decode")
        return Coder(hunyuan_program(model.decoder))

    def encoder(self, model: Any, latent_channels: int) -> Coder:
        self.require_known(model, "encoder", "encode")
        regularization = describe(getattr(model, "regularization", None))
        if regularization not in ("NoneType", "DiagonalGaussianRegularizer"):
            raise UnsupportedModule(f"regularization: expected a Gaussian, got {regularization}")
        program = hunyuan_program(model.encoder)
        require_moments(model, program, latent_channels)
        return Coder(program, finish=lambda rows: rows[:, :latent_channels])


def _levels(shapes: Shapes, row: str) -> tuple[list[int], int]:
    """The widths of a half's levels in the order of their numbers, and the blocks that each has."""
    first = f"{row}.{{}}.block.0.conv1.weight"
    widths = [shapes[first.format(level)][0] for level in range(consecutive(shapes, first))]
    return widths, consecutive(shapes, f"{row}.0.block.{{}}.conv1.weight")
