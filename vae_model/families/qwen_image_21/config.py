"""The configuration of a Qwen-Image 2.1 autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

from ..wan.unit_config import UnitConfig


@dataclass(frozen=True)
class QwenImage21Config(UnitConfig):
    """Of single images with alpha."""

    in_channels: int = 4
    out_channels: int = 4
