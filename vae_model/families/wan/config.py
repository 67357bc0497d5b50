"""The configuration of a Wan 2.1 or Qwen-Image autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

from ..ldm.config import LevelsConfig, widths_of_halves


@dataclass(frozen=True)
class WanConfig:
    """A Wan 2.1 or Qwen-Image autoencoder. An encoder's first level has full size."""

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

    @property
    def time_factor(self) -> int:
        """Frames of a clip per frame of its latents, behind the first one."""
        return 2 ** sum(self.over_time)

    @property
    def decode_factor(self) -> int:
        """The same in what the decoder makes."""
        return self.factor

    @property
    def image_channels(self) -> tuple[int, int]:
        """Image channels that go in and that come out."""
        return self.in_channels, self.out_channels

    @property
    def widths_of_halves(self) -> dict[str, tuple[int, ...]]:
        """Channels of the levels of encoder and decoder in the order in which they run."""
        return widths_of_halves(self.encoder, self.decoder)
