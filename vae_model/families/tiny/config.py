"""The configuration of a tiny autoencoder."""

from __future__ import annotations

import math
from dataclasses import dataclass

MOST_UPSAMPLED = 16
"""By one upsampling of a tiny model."""


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
    """How the decoder upsamples, a mode of torch's Upsample."""
    upsampling_scaling_factor: int = 2
    """Of one upsample; the encoder always halves."""
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
        if not 1 <= self.upsampling_scaling_factor <= MOST_UPSAMPLED:
            raise ValueError(
                f"tiny autoencoder: expected upsampling_scaling_factor of 1 to {MOST_UPSAMPLED}, "
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

    @property
    def decode_factor(self) -> int:
        """Pixels along one side of a latent cell in what the decoder makes; `factor` but for odd ones."""
        if self.decoder_block_out_channels is None:
            return self.factor
        return self.upsampling_scaling_factor ** (len(self.decoder_block_out_channels) - 1)

    @property
    def image_channels(self) -> tuple[int, int]:
        """Image channels that go in and that come out."""
        return self.in_channels, self.out_channels

    @property
    def widths_of_halves(self) -> dict[str, tuple[int, ...]]:
        """Channels of the stages of encoder and decoder in the order in which they run."""
        halves = {"encoder": self.encoder_block_out_channels, "decoder": self.decoder_block_out_channels}
        return {half: widths for half, widths in halves.items() if widths}
