"""The Flux.2 autoencoder: a KL autoencoder whose latents are 2x2 squares in channels, normalised by stored statistics.

Source: black-forest-labs flux2 `src/flux2/autoencoder.py` and diffusers `AutoencoderKLFlux2` (Apache-2.0), read as
facts. In diffusers squares and statistics are the pipeline's; here, as in ComfyUI, they are the autoencoder's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...exact.layer import Statistics, UnsupportedModule
from ...exact.ops.squares import shuffled_first, unshuffled_last
from ...exact.read import read_statistics, require_plain
from ..arguments import require_planes
from ..coder import Coder, require_moments
from ..family import Shapes, latent_shape
from ..hints import Hints, number
from ..latent_formats import Users, users
from ..layout import Layout, Rule
from .autoencoder import AutoencoderKL, RegLog, engine_options
from .config import KLConfig
from .family import KL
from .names import DIFFUSERS, LDM

PATCH = 2
"""Side of the squares."""


class AutoencoderFlux2(AutoencoderKL):
    """AutoencoderKL with `bn`: latents (B, 4 * embed_dim, h, w), normalised, of 2 * f pixels a cell.

    Channel 4 * c + 2 * y + x holds channel c of cell (y, x) of a square. `bn` always uses its stored statistics.
    """

    def __init__(self, embed_dim: int, *, batch_norm_eps: float = KLConfig.batch_norm_eps, **options: Any) -> None:
        super().__init__(embed_dim, **options)
        self.bn = nn.BatchNorm2d(PATCH**2 * embed_dim, eps=batch_norm_eps, affine=False)

    def _scale_shift(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Deviation and mean of the stored statistics, (C, 1, 1) each, on the device of `like` and as precise."""
        stored: Any = self.bn
        mean, variance = (one.to(like)[:, None, None] for one in (stored.running_mean, stored.running_var))
        return torch.sqrt(variance + self.bn.eps), mean

    def pack(self, z: Tensor) -> Tensor:
        """(B, c, h, w) -> normalised (B, 4c, h // 2, w // 2)."""
        height, width = (side // PATCH * PATCH for side in z.shape[2:])
        packed = functional.pixel_unshuffle(z[:, :, :height, :width], PATCH)
        deviation, mean = self._scale_shift(packed)
        return (packed - mean) / deviation

    def unpack(self, z: Tensor) -> Tensor:
        """The inverse: (B, 4c, h, w) -> (B, c, 2h, 2w)."""
        deviation, mean = self._scale_shift(z)
        return functional.pixel_shuffle(z * deviation + mean, PATCH)

    def encode(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Tensor, return_reg_log: bool = False, unregularized: bool = False
    ) -> Tensor | tuple[Tensor, RegLog]:
        """As AutoencoderKL's, latents packed and normalised; the moments of `unregularized` are neither."""
        if unregularized:
            return super().encode(x, unregularized=True)
        z, log = super().encode(x, True)
        return (self.pack(z), log) if return_reg_log else self.pack(z)

    def decode(self, z: Tensor, **kwargs: Any) -> Tensor:
        """Latents (B, 4 * embed_dim, h, w) to raw images (B, C, h * 2f, w * 2f)."""
        require_planes(z, PATCH**2 * self.embed_dim, "decode")
        return super().decode(self.unpack(z), **kwargs)


BATCH_NORM = ("bn.running_mean", "bn.running_var", "bn.num_batches_tracked")
_RULES: tuple[Rule, ...] = tuple((key, key) for key in BATCH_NORM)
_NESTED_QUANT: tuple[Rule, ...] = (
    ("encoder.quant_conv.{p}", "quant_conv.{p}"),
    ("decoder.post_quant_conv.{p}", "post_quant_conv.{p}"),
)


class Flux2(KL):
    """As KL, with latents in squares, normalised."""

    name = "flux2"
    title = "Flux.2 autoencoder"
    layouts: ClassVar[tuple[Layout, ...]] = (
        replace(LDM, family="flux2", rules=(*_NESTED_QUANT, *LDM.rules, *_RULES), required=BATCH_NORM[:1]),
        replace(DIFFUSERS, family="flux2", rules=(*_RULES, *DIFFUSERS.rules), required=BATCH_NORM[:1]),
    )
    fixed: ClassVar[Mapping[str, tuple[str, ...]]] = {**KL.fixed, "patch_size": ("[2, 2]",)}
    reads: ClassVar[tuple[str, ...]] = (*KL.reads, "batch_norm_eps")
    users: ClassVar[Mapping[tuple[int, int], tuple[Users, ...]]] = {(128, 16): (users("flux2"),)}
    classes = KL.classes | {"AutoencoderFlux2"}
    children = KL.children | {"bn"}
    model_class = AutoencoderFlux2

    def core_keys(self, layout: str) -> tuple[str, ...]:
        return (*super().core_keys(layout), *BATCH_NORM[:2])

    def infer(self, shapes: Shapes, hints: Hints) -> KLConfig:
        eps = number(hints, "batch_norm_eps", KLConfig.batch_norm_eps)
        return replace(super().infer(shapes, hints), patch=PATCH, batch_norm_eps=eps)

    def build(self, config: Any) -> nn.Module:
        numbers = {"batch_norm_eps": config.batch_norm_eps, "sample_posterior": False}
        return AutoencoderFlux2(**engine_options(config), **numbers)

    def settings(self, model: Any) -> dict[str, str]:
        return super().settings(model) | {"batch_norm_eps": repr(model.bn.eps)}

    def diffusers_config(self, config: KLConfig, hints: Hints) -> dict[str, Any]:
        fields = super().diffusers_config(config, hints) | {
            "_class_name": "AutoencoderKLFlux2",
            "batch_norm_eps": config.batch_norm_eps,
            "patch_size": [config.patch, config.patch],
        }
        if config.encoder and config.decoder and config.decoder.widths != config.encoder.widths:
            fields["decoder_block_out_channels"] = list(config.decoder.widths)
        return fields

    def users_of(self, config: KLConfig) -> tuple[Users, ...]:
        return self.users.get((config.latent_channels, config.factor), ())

    def convention(self, config: KLConfig) -> str:
        side = config.patch
        return f"{latent_shape(config)}, squares of {side} x {side} in channels, normalised by the file's statistics"

    def untold_settings(self, config: KLConfig, hints: Hints) -> list[str]:
        eps = [] if "batch_norm_eps" in hints else [f"eps of the statistics, taken as {config.batch_norm_eps:g}"]
        return [*super().untold_settings(config, hints), *eps]

    def encode(self, model: Any, x: Tensor, latent_channels: int) -> Tensor:
        moments, _ = model.encode(x, unregularized=True)
        return model.pack(moments[:, : model.embed_dim])

    def knows(self, model: Any) -> bool:
        return super().knows(model) and getattr(model, "bn", None) is not None

    def decoder(self, model: Any) -> Coder:
        program = super().decoder(model).program
        return Coder(shuffled_first(program, _statistics(model, PATCH**2 * program.in_channels)))

    def finished(self, model: Any, coder: Coder, latent_channels: int) -> Coder:
        require_moments(model, coder.program, latent_channels // PATCH**2)
        return Coder(unshuffled_last(coder.program, _statistics(model, latent_channels), latent_channels))


def _statistics(model: Any, channels: int) -> Statistics:
    """Of the latents. The host's class says itself how it packs them and with which eps."""
    require_plain(model.bn)
    statistics = read_statistics(model.bn, "bn", channels)
    if type(model).__name__ == "AutoencoderFlux2":
        return statistics
    patch, eps = getattr(model, "ps", None), getattr(model, "bn_eps", None)
    if patch != [PATCH, PATCH] or eps != statistics.eps:
        raise UnsupportedModule(f"bn: expected squares [2, 2] and its own eps {statistics.eps}, got {patch} and {eps}")
    return statistics
