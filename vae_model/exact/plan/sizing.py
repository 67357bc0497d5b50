"""What a run will take, level by level, by walking the program over sizes alone: no tensor is made."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..program import Extent, Program
from ..schedule import LevelSchedule
from ..sharding.share import WHOLE, Share
from ..stream.context import Context
from ..stream.passes import Need, Performable
from ..stream.value import Value
from ..stream.walk import Walk

SMALL_TENSORS = 128 * 1024
"""Norm parameters, moments and biases: there are some hundred of them, none larger than a few KiB."""
MARGIN = 1.01
"""For what the sizes leave out, such as the old carried rows beside the new ones."""


class Sizing:
    """One program at one shape. Levels are sized in order, each for any schedule, given what came before it."""

    def __init__(
        self,
        program: Program,
        shape: tuple[int, int, int, int],
        dtype: torch.dtype,
        device_type: str,
        share: Share = WHOLE,
        fused_attention: Callable[[int], bool] = lambda width: True,
        threads: int = 1,
    ) -> None:
        """shape: (B, C, H, W) of the input; of the share of it where ranks share the rows."""
        batch, _, height, width = shape
        self.program = program
        device = torch.device(device_type)
        self._context = Context(batch, dtype, device, share=share, fused_attention=fused_attention, threads=threads)
        filler = (LevelSchedule(1),) * program.level_count
        self._walk = Walk(program, filler, self._context, self._record)
        self._schedule = list(filler)
        self._need = Need()
        self.start = self._walk.start(height, width, None)

    def _record(self, part: Performable) -> None:
        self._need += part.need()

    def level(self, level: int, schedule: LevelSchedule, value: Value) -> tuple[Need, Value]:
        """The need of one level and the value that it ends with, from the value that the level before ended with."""
        self._schedule[level] = schedule
        self._walk.schedule = tuple(self._schedule)
        self._need = Need()
        for index, at in enumerate(self.program.levels):
            if at == level:
                value = self._walk.lay(index, value)
        if level == self.program.level_count - 1:
            self._walk.finish(value)
        need = self._need
        peak = int(need.peak_bytes * MARGIN) + SMALL_TENSORS
        return Need(peak, need.host_bytes, need.work, need.moved_bytes), value


def level_sizes(program: Program, height: int, width: int) -> list[Extent]:
    """The largest plane of every level: most channels, and the rows and columns of its results."""
    sizes: list[Extent] = []
    size = Extent(program.in_channels, height, width)
    for op, level in zip(program.ops, program.levels, strict=True):
        before, size = size, op.extent(size)
        channels = size.channels if before.height != size.height else max(size.channels, before.channels)
        if level == len(sizes):
            sizes.append(size._replace(channels=channels))
        sizes[level] = sizes[level]._replace(channels=max(channels, sizes[level].channels))
    return sizes
