"""What a run will take, level by level, by walking the program over sizes alone: no tensor is made."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .attend import AttentionPass
from .computed import conv_work
from .context import Context
from .passes import Pass
from .schedule import LevelSchedule
from .share import WHOLE, Share
from .step import Attend, Convolve, Enlarge, Pack, Program, Residual, Size, Unpack, step_size
from .temporal import time_work
from .temporal_program import TimeConvolve, TimeResidual
from .value import Value
from .walk import Walk

SMALL_TENSORS = 128 * 1024
"""Norm parameters, moments and biases: there are some hundred of them, none larger than a few KiB."""
MARGIN = 1.01
"""For what the sizes leave out, such as the old carried rows beside the new ones."""


@dataclass(frozen=True)
class Need:
    """Bytes at the worst moment on device and host, operations, and bytes copied between the two."""

    peak_bytes: int = 0
    host_bytes: int = 0
    work: int = 0
    moved_bytes: int = 0

    def __add__(self, other: Need) -> Need:
        """One after the other."""
        return Need(
            max(self.peak_bytes, other.peak_bytes),
            max(self.host_bytes, other.host_bytes),
            self.work + other.work,
            self.moved_bytes + other.moved_bytes,
        )


class Sizing:
    """One program at one shape. Levels are sized in order, each for any schedule, given what came before it."""

    def __init__(
        self,
        program: Program,
        shape: tuple[int, int, int, int],
        dtype: torch.dtype,
        device_type: str,
        share: Share = WHOLE,
    ) -> None:
        """shape: (B, C, H, W) of the input; of the share of it where ranks share the rows."""
        batch, _, height, width = shape
        self.program = program
        self._context = Context(batch, dtype, torch.device(device_type), share=share)
        filler = (LevelSchedule(1),) * program.level_count
        self._walk = Walk(program, filler, self._context, self._record)
        self._schedule = list(filler)
        self._need = Need()
        self.start = self._walk.start(height, width, None)

    def _record(self, part: Pass | AttentionPass) -> None:
        self._need += Need(part.peak_bytes(), part.host_bytes(), part.work(), part.moved_bytes())

    def level(self, level: int, schedule: LevelSchedule, value: Value) -> tuple[Need, Value]:
        """The need of one level and the value that it ends with, from the value that the level before ended with."""
        self._schedule[level] = schedule
        self._walk.schedule = tuple(self._schedule)
        self._need = Need()
        for index, at in enumerate(self.program.levels):
            if at == level:
                value = self._walk.step(index, value)
        if level == self.program.level_count - 1:
            self._walk.finish(value)
        need = self._need
        peak = int(need.peak_bytes * MARGIN) + SMALL_TENSORS
        return Need(peak, need.host_bytes, need.work, need.moved_bytes), value


def level_sizes(program: Program, height: int, width: int) -> list[Size]:
    """The largest plane of every level: most channels, and the rows and columns of its results."""
    sizes: list[Size] = []
    size = Size(program.in_channels, height, width)
    for step, level in zip(program.steps, program.levels, strict=True):
        before, size = size, step_size(step, size)
        channels = size.channels if before.height != size.height else max(size.channels, before.channels)
        if level == len(sizes):
            sizes.append(size._replace(channels=channels))
        sizes[level] = sizes[level]._replace(channels=max(channels, sizes[level].channels))
    return sizes


def untiled_work(program: Program, shape: tuple[int, int, int, int]) -> int:
    """Operations of the ordinary run: every convolution once, enlarged planes convolved at full size."""
    batch, _, height, width = shape
    size = Size(program.in_channels, height, width)
    total = 0
    for step in program.steps:
        size = step_size(step, size)
        if isinstance(step, (TimeResidual, TimeConvolve)):
            over_time = [step.conv1, step.conv2] if isinstance(step, TimeResidual) else [step.conv]
            total += sum(time_work(conv, batch, size.height, size.width) for conv in over_time)
            continue
        if isinstance(step, Attend):
            tokens = size.height * size.width
            total += batch * 4 * tokens * tokens * size.channels
            convs = [step.q, step.k, step.v, step.proj_out]
        elif isinstance(step, Residual):
            convs = [step.conv1, step.conv2, *([step.shortcut] if step.shortcut else [])]
        elif isinstance(step, (Convolve, Enlarge)):
            convs = [step.conv]
        elif isinstance(step, (Pack, Unpack)):
            convs = []
        else:
            convs = [
                *step.convs,
                *([step.skip] if step.skip else []),
                *([step.pool[0], step.pool[3]] if step.pool else []),
            ]
        total += sum(conv_work(conv, batch, size.height, size.width) for conv in convs)
    return total
