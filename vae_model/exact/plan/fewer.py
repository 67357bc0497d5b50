"""How many frames of a clip fit, where all of them do not."""

from __future__ import annotations

from collections.abc import Callable

from ..program import Program


def fewer_frames(program: Program, frames: int, fits: Callable[[int], bool]) -> int | None:
    """The most frames of images, fewer than those of a clip of so many frames of input, that fit; None where none do.

    `fits`: whether a clip of so many frames of input does. Of a clip that is encoded only whole groups are counted.
    """
    if frames == 1:
        return None
    side = 1024
    made = program.extent(side, side, frames).frames
    step = max(1, (frames - 1) // max(1, made - 1))
    low, high = 0, (frames - 1) // step  # groups behind the first frame: so many fit, so many do not
    if not fits(1):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if fits(1 + middle * step):
            low = middle
        else:
            high = middle
    most = 1 + low * step
    return max(most, program.extent(side, side, most).frames)
