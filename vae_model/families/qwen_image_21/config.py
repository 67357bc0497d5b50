"""The configuration of a Qwen-Image 2.1 autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

from ..wan.config import WanConfig


@dataclass(frozen=True)
class QwenImage21Config(WanConfig):
    """As of Wan, for single images; `over_time` tells which shortcuts leave channels to a frame that is not there."""

    in_channels: int = 4
    out_channels: int = 4
