"""The configuration of a HunyuanImage 2.1 autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from ..ldm.config import LevelsConfig, widths_of_halves

NUM_GROUPS = 32
"""Of every norm."""


@dataclass(frozen=True)
class HunyuanImageConfig:
    """Level 0 of both halves has full size; every step between levels halves the sides."""

    latent_channels: int
    encoder: LevelsConfig | None
    decoder: LevelsConfig | None
    in_channels: int = 3
    out_channels: int = 3

    def __post_init__(self) -> None:
        halves = [levels for levels in (self.encoder, self.decoder) if levels]
        if not halves:
            raise ValueError("autoencoder: expected an encoder or a decoder, got neither: configure at least one")
        if len({levels.factor for levels in halves}) > 1:
            raise ValueError("autoencoder: expected halves of as many levels, got others: these do not belong together")
        if min(self.latent_channels, self.in_channels, self.out_channels) < 1:
            raise ValueError(f"autoencoder: expected positive channel counts, got {self}: correct them")
        for levels in halves:
            _require_matching(levels.widths)
        moments, deepest = 2 * self.latent_channels, [levels.widths[-1] for levels in halves]
        if (self.encoder and deepest[0] % moments) or (self.decoder and deepest[-1] % self.latent_channels):
            raise ValueError(
                f"autoencoder: expected widths that {self.latent_channels} latent channels divide, got {deepest}: "
                "these do not belong together"
            )

    @property
    def factor(self) -> int:
        """Pixels along one side of a latent cell."""
        levels = self.encoder or self.decoder
        assert levels is not None
        return levels.factor

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


def _require_matching(widths: tuple[int, ...]) -> None:
    """ValueError for widths that no norm has, or between which no shortcut fits."""
    if any(width % NUM_GROUPS for width in widths):
        raise ValueError(f"levels: expected multiples of {NUM_GROUPS} as widths, got {widths}: correct them")
    for outer, inner in pairwise(widths):
        if 4 * outer % inner:
            raise ValueError(f"levels: expected a width that divides {4 * outer}, got {inner}: correct the widths")
