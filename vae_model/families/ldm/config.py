"""Frozen descriptions of the model families: what is needed to build a model, read from a file or written by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..halves import HalvesConfig

NOMINAL_RESOLUTION = 256
"""The configured image size that ldm's `attn_resolutions` refer to; any power-of-two multiple of the factor will do."""


@dataclass(frozen=True)
class LevelsConfig:
    """The resolution levels of one encoder or decoder. Level 0 has full resolution."""

    ch: int
    """Channels after the encoder's conv_in; the unit of the level widths."""
    widths: tuple[int, ...]
    """Channels of each level."""
    num_res_blocks: int
    """ResnetBlocks in an encoder level; a decoder level has one more."""
    attn_levels: tuple[int, ...] = ()
    """Levels with attention after every block."""
    attn_type: str = "vanilla"
    """The kind of all attention layers, the one in the middle too: vanilla, linear or none."""
    num_groups: int | None = None
    """Groups of this half's norms where they are not the model's."""
    resamp_with_conv: bool = True
    """Whether a convolution stands behind every upsample and makes every reduction."""
    conv_shortcut: bool = False
    """Whether the shortcuts of blocks that change their width are 3x3 convolutions, not 1x1."""
    dropout: float = 0.0
    """Inside of blocks, in training alone."""

    def __post_init__(self) -> None:
        if not (0 <= self.dropout <= 1):
            raise ValueError(f"levels: expected a dropout of 0..1, got {self.dropout}: correct it")
        if not self.widths or min((self.ch, self.num_res_blocks, *self.widths)) < 1:
            raise ValueError(
                f"levels: expected positive widths and block counts, got {self}: correct the configuration"
            )

    @property
    def factor(self) -> int:
        """Pixels along one side of a latent cell."""
        return 2 ** (len(self.widths) - 1)


@dataclass(frozen=True)
class KLConfig(HalvesConfig[LevelsConfig]):
    """An ldm autoencoder: encoder and decoder may differ in width, and one of them may be absent."""

    z_channels: int
    embed_dim: int
    encoder: LevelsConfig | None
    decoder: LevelsConfig | None
    in_channels: int = 3
    out_ch: int = 3
    double_z: bool = True
    quant_conv: bool = True
    post_quant_conv: bool = True
    num_groups: int = 32
    """Groups of every GroupNorm; the one number that no tensor shape tells."""
    patch: int = 1
    """Side of the squares of latent cells that lie in the channels of the latents that users hold: 2 in Flux.2."""
    batch_norm_eps: float = 1e-4
    """Of the normalisation of such latents."""
    codebook: int = 0
    """Vectors that latents are replaced by before decoding, each by the nearest; 0 without a codebook."""
    tanh_out: bool = False
    """Whether the decoder ends with tanh."""
    give_pre_end: bool = False
    """Whether the decoder stops before its last norm and convolution."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder and self.decoder and self.encoder.factor != self.decoder.factor:
            raise ValueError(
                f"autoencoder: expected equal factors, got {self.encoder.factor} (encoder) and {self.decoder.factor} "
                "(decoder): these two do not belong together"
            )
        if min(self.num_groups, self.z_channels, self.embed_dim, self.in_channels, self.out_ch) < 1:
            raise ValueError(f"autoencoder: expected positive channel and group counts, got {self}: correct them")
        if not (math.isfinite(self.batch_norm_eps) and self.batch_norm_eps >= 0):
            raise ValueError(f"autoencoder: expected batch_norm_eps from 0 on, got {self.batch_norm_eps}: correct it")
        for levels in self.halves.values():
            groups = self.num_groups if levels.num_groups is None else levels.num_groups
            if groups < 1 or any(width % groups for width in (levels.ch, *levels.widths)):
                raise ValueError(
                    f"autoencoder: expected widths divisible by {groups} norm groups, got {levels.widths}: "
                    "give the right norm_num_groups"
                )

    @property
    def latent_channels(self) -> int:
        """Channels of the latents that users hold."""
        return self.embed_dim * self.patch**2

    @property
    def factor(self) -> int:
        """Pixels along one side of a latent cell."""
        return super().factor * self.patch

    @property
    def image_channels(self) -> tuple[int, int]:
        """Image channels that go in and that come out."""
        return self.in_channels, self.decoder.widths[0] if self.decoder and self.give_pre_end else self.out_ch

    def ddconfig(self, part: str) -> dict[str, Any] | None:
        """Keyword arguments of ldm's Encoder or Decoder (`part` "encoder" or "decoder"), None where it is absent."""
        levels = self.halves.get(part)
        if levels is None:
            return None
        ends = ("tanh_out", "give_pre_end") if part == "decoder" else ()
        of_model = ("out_ch", "in_channels", "z_channels", "double_z", *ends)
        of_half = ("ch", "num_res_blocks", "attn_type", "dropout", "resamp_with_conv", "conv_shortcut")
        factors = (width // levels.ch if width % levels.ch == 0 else width / levels.ch for width in levels.widths)
        return {
            **{name: getattr(self, name) for name in of_model},
            **{name: getattr(levels, name) for name in of_half},
            "ch_mult": tuple(factors),
            "attn_resolutions": tuple(NOMINAL_RESOLUTION // 2**level for level in levels.attn_levels),
            "resolution": NOMINAL_RESOLUTION,
            "num_groups": self.num_groups if levels.num_groups is None else levels.num_groups,
        }
