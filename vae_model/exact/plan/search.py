"""From a program, a shape and a budget to a plan: which schedule every level gets. Pure arithmetic.

Levels are decided in the order they run. Per level the least predicted time that fits wins, which comes out as:
resident, recompute, partial spill, full spill, computing everything again, each with lower strips if nothing fits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from ...errors import MemoryBudgetError
from ...errors.bytesize import format_bytes
from ...kernels.method import Machine
from ...kernels.methods import this_machine
from ..extent import Extent
from ..program import Program
from ..schedule import LevelSchedule
from ..sharding.share import WHOLE, Share
from .fewer import fewer_frames
from .level import LevelSearch
from .plan import LevelPlan, Plan
from .sizing import Need, Sizing

_NAMED_TRIES = 12
_NAMED_SLACK = 1.006
"""What rounding to three digits takes away at most."""
KINDS = ("resident", "recompute", "spill")


def make_plan(
    program: Program,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    device_budget: int,
    host_budget: int = 0,
    *,
    device_type: str = "cpu",
    prefer: str | None = None,
    strip_rows: int | None = None,
    share: Share = WHOLE,
    allow: Callable[[int, LevelSchedule], bool] | None = None,
    fused_attention: Callable[[int], bool] = lambda width: True,
    machine: Machine | None = None,
    weights_beside: int = 0,
) -> Plan:
    """The plan of least predicted time within the budgets.

    Args:    shape: (B, C, H, W) of the input, latents or images, or (T, C, H, W) of a clip.
             device_budget: bytes for activations and workspace, on top of weights, input and finished output.
             host_budget: bytes of host memory for strips that wait there; 0 spills nothing.
             prefer: "resident", "recompute" or "spill" allows only that at levels of more than a quarter of the pixels.
             strip_rows: rows of the last level's strips, other levels in proportion; lower where they do not fit. None
             chooses.
             share: which rows of the whole image these are. allow: (level, schedule) -> whether it may be chosen.
             fused_attention: (channels) -> whether the device has attention that writes no scores down.
             machine: what convolutions depend on; None for this one, which is asked before anything is planned.
             weights_beside: bytes of weights that are made for one layer at a time, as `cast_bytes` counts them.
    Raises:  MemoryBudgetError with the smallest budget that would do; ValueError for a budget or height below 1.
    """
    if device_budget <= 0:
        raise ValueError(f"memory: expected a budget above 0 bytes, got {device_budget}: allow more")
    if strip_rows is not None and strip_rows < 1:
        raise ValueError(f"strip height: expected at least 1 row, got {strip_rows}: make it larger")
    if prefer is not None and prefer not in KINDS:
        raise ValueError(f"prefer: expected one of {', '.join(KINDS)}, got {prefer!r}: choose one of these")
    if prefer == "spill" and not host_budget:
        raise ValueError("prefer: expected host memory to spill into, got a host budget of 0: allow some")
    if min(shape) < 1 or shape[1] != program.in_channels:
        raise ValueError(
            f"shape: expected (batch, {program.in_channels}, height, width), got {shape}: plan another one"
        )
    machine = machine or this_machine(device_type, dtype)

    def begin(shape: tuple[int, int, int, int]) -> _Search:
        way = program, shape
        if share is WHOLE and strip_rows is None:
            way = _shorter_way(program, shape)
        sizing = Sizing(way[0], way[1], dtype, device_type, share, fused_attention, machine, weights_beside)
        level = LevelSearch(sizing, way[1], dtype, device_budget, host_budget, device_type, prefer, strip_rows, allow)
        return _Search(level, way[1], dtype, way[0] is not program)

    search = begin(shape)
    level, found = search.level, search.run()
    if isinstance(found, Plan):
        return found
    # Another budget may lead to other schedules, even a lower one to some that fit: what is enough for one level may be
    # too much beside the next. What is named as enough has been tried.
    level.device_budget = 1
    least = search.run()
    assert not isinstance(least, Plan)
    found = min(found, least)
    for number in range(1, _NAMED_TRIES + 1):
        level.device_budget = int(found * _NAMED_SLACK**number)
        again = search.run()
        if isinstance(again, Plan):
            if again.peak_bytes <= device_budget:
                return replace(again, device_budget=device_budget)
            break
        found = max(again, level.device_budget)
    fewer = None
    if program.in_time and share is WHOLE:
        fewer = fewer_frames(program, shape[0], lambda count: isinstance(begin((count, *shape[1:])).run(), Plan))
    raise MemoryBudgetError(search.message(level.device_budget, device_budget, fewer), level.device_budget)


def _shorter_way(program: Program, shape: tuple[int, int, int, int]) -> tuple[Program, tuple[int, int, int, int]]:
    """Clips go along their longer side: what stands of a layer are lines across it, of all frames."""
    frames, channels, height, width = shape
    if not program.in_time or frames == 1 or width <= height or program.turned is None:
        return program, shape
    return program.turned, (frames, channels, width, height)


class _Search:
    """The choice of every level's schedule, in the order in which they run."""

    def __init__(self, level: LevelSearch, shape: tuple[int, int, int, int], dtype: torch.dtype, turned: bool) -> None:
        self.level, self.sizing, self.program, self.sizes = level, level.sizing, level.sizing.program, level.sizes
        self.shape, self.dtype, self.turned = shape, dtype, turned
        self.smallest_host_bytes = 0
        self.left_open = False
        """Whether a level left its result to those behind it, as something to compute."""

    def run(self) -> Plan | int:
        """The plan, or the bytes that the smallest schedules need where one of them does not fit.

        A plane that is stored stands in the way of all that follows. Where nothing need be stored and no plan fits that
        copies nothing to host memory, the last levels store nothing, then those before them, too; and what is stored
        before these waits in host memory.
        """
        plans, needed = list[Plan](), list[int]()
        for waits, first in self._ways():
            self.level.waits, self.level.streamed_from = waits, first
            found = self._less_and_less_open()
            if isinstance(found, int):
                needed.append(found)
            elif not found.moved_bytes:
                return found
            else:
                plans.append(found)
        return (
            min(plans, key=lambda plan: plan.work + self.level.work_per_byte * plan.moved_bytes)
            if plans
            else min(needed)
        )

    def _less_and_less_open(self) -> Plan | int:
        """What a level leaves to later ones costs memory there: where that is too much, less is left."""
        self.level.first_open = 0
        found, least = self._levels(), self.smallest_host_bytes
        for level in range(1, len(self.sizes)):
            if isinstance(found, Plan) or not self.left_open:
                break
            self.level.first_open = level
            again = self._levels()
            if isinstance(again, Plan) or again < found:
                found, least = again, self.smallest_host_bytes
        self.smallest_host_bytes = least
        return found

    def _ways(self) -> list[tuple[bool, int]]:
        """(whether planes before them wait, the first of the levels that store nothing), in the order of their work."""
        levels = len(self.sizes)
        if not self.program.streams:
            return [(False, levels)]
        waits = [False, True] if self.level.host_budget else [False]
        return [(wait, first) for wait in waits for first in range(levels, -1, -1)]

    def _levels(self) -> Plan | int:
        """Level by level; a level that nothing fits is given its smallest schedule, to tell what would be needed."""
        value, levels, total, failed = self.sizing.start, list[LevelPlan](), Need(), False
        self.left_open = False
        for level, size in enumerate(self.sizes):
            found, rejected = self.level.best(level, value)
            value, need = found.value, found.need
            self.left_open |= value.plane is None and not found.schedule.store_blocks and level + 1 < len(self.sizes)
            failed |= not self.level.fits(found)
            height, width = self._sides(size)
            levels.append(LevelPlan(height, width, size.channels, found.schedule, need, tuple(rejected)))
            total += need
        if failed:
            self.smallest_host_bytes = total.host_bytes
            return total.peak_bytes
        images, channels, height, width = self.shape
        shape = (images, channels, width, height) if self.turned else self.shape
        return Plan(
            shape, self.dtype, self.level.device_budget, self.level.host_budget, tuple(levels), total,
            self.program.flops(self.shape), self.turned, self._images(), self._is_clip,
        )  # fmt: skip

    @property
    def _is_clip(self) -> bool:
        return self.program.in_time and self.shape[0] > 1

    def _images(self) -> tuple[int, int, int, int]:
        """(B, H, W, C) of the larger of input and result."""
        count, channels, rows, columns = self.shape
        batch, frames = self.program.batch_and_frames(count)
        size = Extent(channels, rows, columns, frames)
        made = self.program.extent(rows, columns, frames)
        size = max(size, made, key=lambda one: one.height * one.width * one.frames)
        return (batch * size.frames, *self._sides(size), size.channels)

    def _sides(self, size: Extent) -> tuple[int, int]:
        """Height and width as users know them."""
        return (size.width, size.height) if self.turned else (size.height, size.width)

    def message(self, needed: int, budget: int, fewer: int | None) -> str:
        """Why there is no plan. `fewer`: frames of a shorter clip that fit."""
        size = self.sizes[-1] if self.sizes[-1].height >= self.sizes[0].height else self.sizes[0]
        (height, width), host = self._sides(size), self.smallest_host_bytes
        also = f" and {format_bytes(host)} of host memory" if host else ""
        frames = f", {self._images()[0]} frames" if self._is_clip else ""
        way = f", or a clip of at most {fewer} frames" if fewer else ""
        return (
            f"{width} x {height}{frames}: expected a budget of at least {format_bytes(needed)}{also}, "
            f"got {format_bytes(budget)}: allow more memory or use a smaller image{way}"
        )
