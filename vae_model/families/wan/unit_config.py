"""The configuration of an autoencoder whose levels are units with shortcuts: Wan 2.2's network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .config import WanConfig


@dataclass(frozen=True)
class UnitConfig(WanConfig):
    """As of Wan. Of a network of pictures `over_time` tells which shortcuts leave channels to a frame not there."""

    taps: ClassVar[int] = 1
    """Frames that convolutions see; 1 of a network of pictures, which knows no clips."""
    patch: ClassVar[int] = 1
    """Side of the squares of pixels that lie in the channels of what the network sees: 1 or 2."""

    @property
    def factor(self) -> int:
        """Pixels along one side of a latent cell."""
        return self.patch * super().factor

    @property
    def enlargement(self) -> int:
        """None of them enlarges."""
        return 1
