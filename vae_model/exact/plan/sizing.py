"""What a run will take, level by level, by walking the program over sizes alone: no tensor is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any

import torch

from ...kernels.method import Machine
from ..extent import Extent
from ..program import Program
from ..schedule import LevelSchedule
from ..sharding.share import WHOLE, Share
from ..stream.context import Context
from ..stream.moments import Moments
from ..stream.passes import Performable
from ..stream.past import Past
from ..stream.value import Value
from ..stream.walk import Walk

SMALL_TENSORS = 128 * 1024
"""Norm parameters, moments and biases: there are some hundred of them, none larger than a few KiB."""
MARGIN = 1.01
"""For what the sizes leave out, such as the old carried rows beside the new ones."""
_ENDLESS = 2**80


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


class Laid:
    """The passes that an op takes under a schedule, and its result. Peaks are counted as far as they are asked for."""

    def __init__(self, passes: list[Performable], value: Value, moments: Moments | None, beside: int = 0) -> None:
        """`moments`: those of its input, afterwards. `beside`: bytes of weights that no pass counts."""
        self.passes, self.value, self.moments = passes, value, moments
        self.work = sum(part.work for part in passes)
        self.moved_bytes = sum(part.moved_bytes for part in passes)
        self._peaks = (_with_margin(peak + beside) for part in passes for peak in part.peaks())
        self._most = _with_margin(beside)

    def exceeds(self, device_bytes: int) -> bool:
        """Whether it takes more, counted no further than to what tells."""
        while self._most <= device_bytes:
            peak = next(self._peaks, None)
            if peak is None:
                return False
            self._most = max(self._most, peak)
        return True

    @cached_property
    def need(self) -> Need:
        """Of one pass after the other."""
        self.exceeds(_ENDLESS)
        host_bytes = max((part.host_bytes for part in self.passes), default=0)
        self.passes.clear()  # everything is told
        return Need(self._most, host_bytes, self.work, self.moved_bytes)


class Sized:
    """A level under a schedule: its operations, what it needs, and the activation that it ends with."""

    def __init__(self, schedule: LevelSchedule, laid: list[Laid]) -> None:
        self.schedule, self._laid, self.value = schedule, laid, laid[-1].value
        self.work = sum(part.work for part in laid)
        self.moved_bytes = sum(part.moved_bytes for part in laid)

    @cached_property
    def need(self) -> Need:
        """Of one op after the other."""
        return sum((part.need for part in self._laid), Need())

    def fits(self, device_bytes: int, host_bytes: int) -> bool:
        """Whether it needs no more than these."""
        return not any(part.exceeds(device_bytes) for part in self._laid) and self.need.host_bytes <= host_bytes


def _with_margin(peak_bytes: int) -> int:
    return int(peak_bytes * MARGIN) + SMALL_TENSORS


class Sizing:
    """One program at one shape. Levels are sized in order, each for any schedule, given what came before it.

    Nothing is counted twice: an op like one before it that reads such a plane under such a schedule needs the same.
    """

    def __init__(
        self,
        program: Program,
        shape: tuple[int, int, int, int],
        dtype: torch.dtype,
        device_type: str,
        share: Share = WHOLE,
        fused_attention: Callable[[int], bool] = lambda width: True,
        machine: Machine | None = None,
        weights_beside: int = 0,
    ) -> None:
        """shape: (B, C, H, W) of the input, (T, C, H, W) of a clip; of the share of it where ranks share the rows.

        weights_beside: bytes of weights that are made for one layer at a time.
        """
        images, _, height, width = shape
        self.program, self._beside = program, weights_beside
        batch, frames = program.batch_and_frames(images)
        device = torch.device(device_type)
        past = Past(dtype, device) if program.continues else None  # of which nothing is read
        self._context = Context(
            batch, dtype, device, share=share, fused_attention=fused_attention, machine=machine, past=past
        )
        if past is not None:
            past.continues = True
        filler = (LevelSchedule(1),) * program.level_count
        self._passes = list[Performable]()
        self._walk = Walk(program, filler, self._context, self._passes.append)
        self.start = self._walk.start(height, width, frames, None)
        forms = dict[Any, int]()
        self._forms = tuple(forms.setdefault(_form(op), len(forms)) for op in program.ops)
        self._laid = dict[Any, Laid]()
        self._levels = dict[tuple[int, LevelSchedule, int], Sized]()
        self._starts: list[Value] = []
        """Kept, so that no other value gets the number of one of them."""

    def level(self, level: int, schedule: LevelSchedule, value: Value) -> Sized:
        """One level, behind `value`, which the level before ended with."""
        known = self._levels.get((level, schedule, id(value)))
        if known is not None:
            return known
        filler = (LevelSchedule(1),) * self.program.level_count
        self._walk.schedule = (*filler[:level], schedule, *filler[level + 1 :])
        laid, start = list[Laid](), value
        for index, at in enumerate(self.program.levels):
            if at == level:
                laid.append(self._lay(index, value, schedule))
                value = laid[-1].value
        if level == self.program.level_count - 1:
            self._walk.finish(value)
            laid.append(Laid(self._taken(), value, None, self._beside))
        self._starts.append(start)
        found = self._levels[level, schedule, id(start)] = Sized(schedule, laid)
        return found

    def _lay(self, index: int, value: Value, schedule: LevelSchedule) -> Laid:
        """One op; as before, where all that it depends on is as before."""
        plane, key = value.plane, None
        if plane is not None:
            ends = [at != self.program.levels[index] for at in self.program.levels[index + 1 : index + 2]]
            groups = None if value.moments is None else value.moments.groups
            stored = plane.size, plane.strip_rows, plane.device_share, groups
            key = (self._forms[index : index + 2], *ends, schedule, stored)
            if key in self._laid:
                value.moments = self._laid[key].moments
                return self._laid[key]
        result = self._walk.lay(index, value)
        laid = Laid(self._taken(), result, value.moments, self._beside)
        if key is not None:
            self._laid[key] = laid
        return laid

    def _taken(self) -> list[Performable]:
        """The passes since the last call."""
        taken, self._passes[:] = list(self._passes), []
        return taken


def _form(part: Any) -> Any:
    """An op, or a part of one, without names and modules."""
    if is_dataclass(part):
        return type(part), *(_form(getattr(part, f.name)) for f in fields(part) if f.name not in ("module", "name"))
    return tuple(map(_form, part)) if isinstance(part, tuple) else part  # pyright: ignore[reportUnknownArgumentType]


def least_row_bytes(program: Program, height: int, width: int, frames: int, itemsize: int) -> list[int]:
    """Of every level what a row of its strips takes at least, whatever is stored: of the widest convolution in a block
    the window, and what it makes of that.
    """
    sizes, size = level_sizes(program, height, width, frames), Extent(program.in_channels, height, width, frames)
    least = [0] * len(sizes)
    for op, level in zip(program.ops, program.levels, strict=True):
        before, size = size, op.extent(size)
        if op.inner_plane and before[1:] == size[1:] and size.height == sizes[level].height:
            channels = max((sum(conv.channels) for conv in op.convs if conv.kernel > 1), default=0)
            least[level] = max(least[level], channels * size.width * size.frames * itemsize)
    return least


def level_sizes(program: Program, height: int, width: int, frames: int = 1) -> list[Extent]:
    """The largest plane of every level: most channels and frames, and the rows and columns of its results."""
    sizes: list[Extent] = []
    size = Extent(program.in_channels, height, width, frames)
    for op, level in zip(program.ops, program.levels, strict=True):
        before, size = size, op.extent(size)
        channels = size.channels if before.height != size.height else max(size.channels, before.channels)
        if level == len(sizes):
            sizes.append(size._replace(channels=channels))
        sizes[level] = sizes[level]._replace(
            channels=max(channels, sizes[level].channels), frames=max(size.frames, sizes[level].frames)
        )
    return sizes
