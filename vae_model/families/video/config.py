"""The configuration of a KL autoencoder with a temporal decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..ldm.config import KLConfig


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
