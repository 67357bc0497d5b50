"""What every configuration tells."""

from __future__ import annotations

from .ldm.config import KLConfig
from .tiny.config import TinyConfig
from .video.config import VideoConfig
from .wan.config import WanConfig

Config = KLConfig | VideoConfig | TinyConfig | WanConfig


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
