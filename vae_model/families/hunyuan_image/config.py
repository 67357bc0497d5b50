"""The configuration of a HunyuanImage 2.1 autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from ..halves import HalvesConfig
from ..ldm.config import LevelsConfig

NUM_GROUPS = 32
"""Of every norm."""


@dataclass(frozen=True)
class HunyuanImageConfig(HalvesConfig[LevelsConfig]):
    """Level 0 of both halves has full size; every step between levels halves the sides."""

    latent_channels: int
    encoder: LevelsConfig | None
    decoder: LevelsConfig | None
    in_channels: int = 3
    out_channels: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        halves = [*self.halves.values()]
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
    def image_channels(self) -> tuple[int, int]:
        """Image channels that go in and that come out."""
        return self.in_channels, self.out_channels


def _require_matching(widths: tuple[int, ...]) -> None:
    """ValueError for widths that no norm has, or between which no shortcut fits."""
    if any(width % NUM_GROUPS for width in widths):
        raise ValueError(f"levels: expected multiples of {NUM_GROUPS} as widths, got {widths}: correct them")
    for outer, inner in pairwise(widths):
        if 4 * outer % inner:
            raise ValueError(f"levels: expected a width that divides {4 * outer}, got {inner}: correct the widths")
