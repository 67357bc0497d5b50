"""The configuration of a Wan 2.1 or Qwen-Image autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

from ..halves import HalvesConfig
from ..ldm.config import LevelsConfig


@dataclass(frozen=True)
class WanConfig(HalvesConfig[LevelsConfig]):
    """A Wan 2.1 or Qwen-Image autoencoder. An encoder's first level has full size."""

    latent_channels: int
    encoder: LevelsConfig | None
    decoder: LevelsConfig | None
    over_time: tuple[bool, ...]
    """For each step between levels, from full size on, whether it halves frames, too: it then holds more weights."""
    in_channels: int = 3
    out_channels: int = 3
    """Of the last convolution: four times those that go in where the pixels of 2x2 squares lie in them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = [len(levels.widths) - 1 for levels in self.halves.values()]
        if {*steps} != {len(self.over_time)}:
            raise ValueError(
                f"autoencoder: expected as many steps between levels, got {steps} and {len(self.over_time)}: "
                "these do not belong together"
            )
        if min(self.latent_channels, self.in_channels, self.out_channels) < 1:
            raise ValueError(f"autoencoder: expected positive channel counts, got {self}: correct them")

    @property
    def time_factor(self) -> int:
        """Frames of a clip per frame of its latents, behind the first one."""
        return 2 ** sum(self.over_time)

    @property
    def image_channels(self) -> tuple[int, int]:
        """Image channels that go in and that come out."""
        return self.in_channels, self.out_channels // self.enlargement**2

    @property
    def enlargement(self) -> int:
        """How many times as large as what was encoded the decoder makes both sides of an image."""
        return 2 if self.out_channels == 4 * self.in_channels else 1

    @property
    def decode_factor(self) -> int:
        """Pixels along one side of a latent cell in what the decoder makes."""
        return self.factor * self.enlargement
