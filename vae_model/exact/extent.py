"""The size of an activation."""

from __future__ import annotations

from typing import NamedTuple


class Extent(NamedTuple):
    """Channels, rows and columns of a plane, and the frames of a clip that it holds; pictures have one."""

    channels: int
    height: int
    width: int
    frames: int = 1
