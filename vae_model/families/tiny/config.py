"""The configuration of a tiny autoencoder, and how much memory an untiled run takes, counted as in `ldm.memory`."""

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
        for what, shift, scale in (
            ("shift and a finite scale", self.shift_factor, self.scaling_factor),
            ("latent_shift and a finite latent_magnitude", self.latent_shift, self.latent_magnitude),
        ):
            if not (math.isfinite(scale) and scale and math.isfinite(shift)):
                raise ValueError(
                    f"tiny autoencoder: expected a finite {what} that is not 0, got {shift} and {scale}: correct them"
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


def tiny_elements(config: TinyConfig, direction: str) -> float:
    """Live activation elements per image pixel at the peak of an untiled run, "decode" or "encode"."""
    encodes = direction == "encode"
    widths = config.encoder_block_out_channels if encodes else config.decoder_block_out_channels
    blocks = config.num_encoder_blocks if encodes else config.num_decoder_blocks
    if not widths:
        return 0.0
    stem = encodes and config.strided_stem
    step = 2 if encodes else config.upsampling_scaling_factor
    shares = [float(step**2) ** -(stage + stem) for stage in range(len(widths))]  # of the image's pixels
    shares = shares if encodes else shares[::-1]
    worst = 0.0
    for stage, (width, share) in enumerate(zip(widths, shares, strict=True)):
        worst = max(worst, 3.0 * width * share if blocks[stage] else width * share)  # blocks hold three planes
        if stage:  # the narrower, larger or smaller plane stands beside its source
            source = widths[stage - 1] * max(share, shares[stage - 1])  # upsampled before its convolution
            worst = max(worst, source + width * share, widths[stage - 1] * (share + shares[stage - 1]))
    if config.midblock_gn:
        deepest, count = (widths[-1], blocks[-1]) if encodes else (widths[0], blocks[0])
        worst = max(worst, 9.0 * deepest * min(shares) if count else 0.0)  # input, two planes of four times the width
    return worst + 2 * config.in_channels if encodes else max(worst, float(widths[-1] + config.out_channels))
