"""Frozen descriptions of the model families: what is needed to build a model, read from a file or written by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

NOMINAL_RESOLUTION = 256
"""The configured image size that ldm's `attn_resolutions` refer to; any power-of-two multiple of the factor will do."""
MOST_ENLARGED = 16
"""By one enlargement of a tiny model."""


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
    """Whether a convolution stands behind every enlargement and makes every reduction."""
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
class KLConfig:
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
        if self.encoder is None and self.decoder is None:
            raise ValueError("autoencoder: expected an encoder or a decoder, got neither: configure at least one")
        if self.encoder and self.decoder and self.encoder.factor != self.decoder.factor:
            raise ValueError(
                f"autoencoder: expected equal factors, got {self.encoder.factor} (encoder) and {self.decoder.factor} "
                "(decoder): these two do not belong together"
            )
        if min(self.num_groups, self.z_channels, self.embed_dim, self.in_channels, self.out_ch) < 1:
            raise ValueError(f"autoencoder: expected positive channel and group counts, got {self}: correct them")
        if not (math.isfinite(self.batch_norm_eps) and self.batch_norm_eps >= 0):
            raise ValueError(f"autoencoder: expected batch_norm_eps from 0 on, got {self.batch_norm_eps}: correct it")
        for levels in (self.encoder, self.decoder):
            groups = self.num_groups if levels is None or levels.num_groups is None else levels.num_groups
            if levels and (groups < 1 or any(width % groups for width in (levels.ch, *levels.widths))):
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
        levels = self.decoder or self.encoder
        assert levels is not None
        return levels.factor * self.patch

    def ddconfig(self, part: str) -> dict[str, Any] | None:
        """Keyword arguments of ldm's Encoder or Decoder (`part` "encoder" or "decoder"), None where it is absent."""
        levels = self.encoder if part == "encoder" else self.decoder
        if levels is None:
            return None
        ends = {"tanh_out": self.tanh_out, "give_pre_end": self.give_pre_end} if part == "decoder" else {}
        return ends | {
            "ch": levels.ch,
            "out_ch": self.out_ch,
            "ch_mult": tuple(
                width // levels.ch if width % levels.ch == 0 else width / levels.ch for width in levels.widths
            ),
            "num_res_blocks": levels.num_res_blocks,
            "attn_resolutions": tuple(NOMINAL_RESOLUTION // 2**level for level in levels.attn_levels),
            "in_channels": self.in_channels,
            "resolution": NOMINAL_RESOLUTION,
            "z_channels": self.z_channels,
            "double_z": self.double_z,
            "attn_type": levels.attn_type,
            "num_groups": self.num_groups if levels.num_groups is None else levels.num_groups,
            "dropout": levels.dropout,
            "resamp_with_conv": levels.resamp_with_conv,
            "conv_shortcut": levels.conv_shortcut,
        }


@dataclass(frozen=True)
class TinyConfig:
    """A TAESD-style autoencoder. Stages are in the order they run, so full resolution is the decoder's last."""

    latent_channels: int = 4
    in_channels: int = 3
    out_channels: int = 3
    encoder_block_out_channels: tuple[int, ...] | None = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] | None = (64, 64, 64, 64)
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    midblock_gn: bool = False
    """Whether the blocks at latent resolution carry TAEF2's GroupNorm branch."""
    strided_stem: bool = False
    """Whether the encoder's first two convolutions halve the image and are activated, as in TAESana: a stage less."""
    scaling_factor: float = 1.0
    """The tiny model works on (raw latent - shift_factor) * scaling_factor."""
    shift_factor: float = 0.0
    latent_format: str | None = None
    """Whose latents these are, a name in `latent_formats.LATENT_FORMATS`; None where it is not known."""
    act_fn: str = "relu"
    """Inside of blocks, a name in `tiny.ACTIVATIONS`."""
    upsample_fn: str = "nearest"
    """How the decoder enlarges, a mode of torch's Upsample."""
    upsampling_scaling_factor: int = 2
    """Of one enlargement; the encoder always halves."""
    latent_magnitude: float = 3
    """`scale_latents` brings latents from shift - magnitude ... to 0..1."""
    latent_shift: float = 0.5
    """Where 0 lies in that range."""
    force_upcast: bool = False
    """For programs that would run the model in 16 bits."""

    def __post_init__(self) -> None:
        if self.encoder_block_out_channels is None and self.decoder_block_out_channels is None:
            raise ValueError("tiny autoencoder: expected an encoder or a decoder, got neither: configure at least one")
        if not (math.isfinite(self.scaling_factor) and self.scaling_factor and math.isfinite(self.shift_factor)):
            raise ValueError(
                "tiny autoencoder: expected a finite shift and a finite scale that is not 0, "
                f"got {self.shift_factor} and {self.scaling_factor}: correct them"
            )
        if not (math.isfinite(self.latent_magnitude) and self.latent_magnitude and math.isfinite(self.latent_shift)):
            raise ValueError(
                "tiny autoencoder: expected a finite latent_shift and a finite latent_magnitude that is not 0, "
                f"got {self.latent_shift} and {self.latent_magnitude}: correct them"
            )
        if not 1 <= self.upsampling_scaling_factor <= MOST_ENLARGED:
            raise ValueError(
                f"tiny autoencoder: expected upsampling_scaling_factor of 1 to {MOST_ENLARGED}, "
                f"got {self.upsampling_scaling_factor}: correct it"
            )
        encoder, decoder = self.encoder_block_out_channels, self.decoder_block_out_channels
        stages = {len(w) + extra for w, extra in ((encoder, self.strided_stem), (decoder, 0)) if w is not None}
        if len(stages) > 1:
            raise ValueError(
                f"tiny autoencoder: expected as many stages in encoder and decoder, got {sorted(stages)}: "
                "these two do not belong together"
            )

    @property
    def factor(self) -> int:
        """Pixels along one side of a latent cell."""
        if self.decoder_block_out_channels:
            return 2 ** (len(self.decoder_block_out_channels) - 1)
        assert self.encoder_block_out_channels is not None
        return 2 ** (len(self.encoder_block_out_channels) - 1 + self.strided_stem)


@dataclass(frozen=True)
class VideoConfig(KLConfig):
    """An ldm autoencoder whose decoder mixes the frames of a group: Stable Video Diffusion."""

    time_mode: str = "conv-only"
    """Which layers mix, a name in `video.TIME_MODES`."""
    video_kernel_size: tuple[int, int, int] = (3, 1, 1)
    """Of the convolutions over (frames, rows, columns)."""
    merge_strategy: str = "learned"
    """Whether the shares are learned or fixed; no tensor tells."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoder is None:
            raise ValueError("video autoencoder: expected a decoder, got none: load the encoder as an image model")

    def ddconfig(self, part: str) -> dict[str, Any] | None:
        """Keyword arguments of Encoder or VideoDecoder."""
        options = super().ddconfig(part)
        if options is None or part == "encoder":
            return options
        names = ("time_mode", "video_kernel_size", "merge_strategy")
        return options | {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class WanConfig:
    """A Wan 2.1 or Qwen-Image autoencoder, of which single frames are run. An encoder's first level has full size."""

    latent_channels: int
    encoder: LevelsConfig | None
    decoder: LevelsConfig | None
    over_time: tuple[bool, ...]
    """For each step between levels, from full size on, whether it halves frames, too: it then holds more weights."""
    in_channels: int = 3
    out_channels: int = 3

    def __post_init__(self) -> None:
        if self.encoder is None and self.decoder is None:
            raise ValueError("autoencoder: expected an encoder or a decoder, got neither: configure at least one")
        steps = [len(levels.widths) - 1 for levels in (self.encoder, self.decoder) if levels]
        if {*steps} != {len(self.over_time)}:
            raise ValueError(
                f"autoencoder: expected as many steps between levels, got {steps} and {len(self.over_time)}: "
                "these do not belong together"
            )
        if min(self.latent_channels, self.in_channels, self.out_channels) < 1:
            raise ValueError(f"autoencoder: expected positive channel counts, got {self}: correct them")

    @property
    def factor(self) -> int:
        """Pixels along one side of a latent cell."""
        return 2 ** len(self.over_time)


Config = KLConfig | VideoConfig | TinyConfig | WanConfig

SMALL = KLConfig(
    z_channels=16,
    embed_dim=16,
    encoder=LevelsConfig(ch=32, widths=(32, 64, 96, 128), num_res_blocks=1),
    decoder=LevelsConfig(ch=32, widths=(32, 64, 96, 128), num_res_blocks=1),
    num_groups=16,
)
"""The bundled VAE: f8, 16 latent channels, 3.5 million parameters."""


def image_channels(config: Config) -> tuple[int, int]:
    """Image channels that go in and that come out."""
    if isinstance(config, KLConfig) and config.decoder and config.give_pre_end:
        return config.in_channels, config.decoder.widths[0]
    out_channels = config.out_ch if isinstance(config, KLConfig) else config.out_channels
    return config.in_channels, out_channels


def decode_factor(config: Config) -> int:
    """Pixels along one side of a latent cell in what the decoder makes; `config.factor` but for odd tiny models."""
    if isinstance(config, TinyConfig) and config.decoder_block_out_channels:
        return config.upsampling_scaling_factor ** (len(config.decoder_block_out_channels) - 1)
    return config.factor
