"""The schedule of one level: of all that fit, the one of least predicted time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from ...errors.bytesize import format_bytes
from ...kernels.profile import profile_of
from ..extent import Extent
from ..schedule import LevelSchedule
from ..stream.value import Value
from .choice import Choice
from .sizing import Need, Sized, Sizing, least_row_bytes, level_sizes
from .ways import ways_to_store

_SHARES = 16
PLAIN_COST = 1.8
"""Time of plain 3x3 convolutions in that of fast ones (1.5 for 128 channels, 2.5 for 256 and 512 on a CPU)."""
_FAST_ROWS = 4
"""Strips are a multiple of so many rows where fast convolution shall not compute rows in vain."""
_COST = {"resident": 1.0, "recompute": 1.15, "recompute all": 2.3}
"""Usual work of the three ways of storing: the order in which they are tried."""
_LOWER_TRIES = 1
"""Once something fits, so many lower strips are tried for a schedule of less work."""
_LOWER_GAIN = 1.1
"""What lower strips must gain at least: their overhead is not predicted."""


class LevelSearch:
    """The choice of a level's schedule, given what the level before ends with."""

    def __init__(
        self,
        sizing: Sizing,
        shape: tuple[int, int, int, int],
        dtype: torch.dtype,
        device_budget: int,
        host_budget: int,
        device_type: str,
        prefer: str | None,
        strip_rows: int | None,
        allow: Callable[[int, LevelSchedule], bool] | None,
    ) -> None:
        self.sizing, self.program = sizing, sizing.program
        self.device_budget, self.host_budget = device_budget, host_budget
        self.prefer, self.strip_rows, self.allow = prefer, strip_rows, allow
        self.batch, frames = self.program.batch_and_frames(shape[0])
        self.sizes = level_sizes(self.program, shape[2], shape[3], frames)
        self.row_bytes = least_row_bytes(self.program, *shape[2:], frames, self.batch * dtype.itemsize)
        profile = profile_of(device_type)
        self.elements, self.work_per_byte = profile.strip_elements, profile.work_per_byte
        self.fast = profile.fewer_multiplications and dtype == torch.float32
        self.streamed_from = len(self.sizes)
        """The first of the levels that store nothing where they need not."""
        self.first_open = 0
        """The first level that may leave its result to the levels behind it, as something to compute."""
        self.waits = False
        """Whether all that the levels before them store waits in host memory."""

    def fits(self, found: Sized) -> bool:
        return found.fits(self.device_budget, self.host_budget)

    def _score(self, found: Sized, moved: float = 1.0) -> float:
        """`moved`: the share of what it copies that counts."""
        return self._floor(found) + self.work_per_byte * found.moved_bytes * moved

    def _floor(self, found: Sized) -> float:
        """The score without any copies; neither the strips' height nor what waits elsewhere changes it."""
        return (PLAIN_COST if self.fast and not found.schedule.fast_convolution else 1.0) * found.work

    def best(self, level: int, value: Value) -> tuple[Sized, list[str]]:
        """The best schedule that fits, else the smallest one; and a line for each that was rejected."""
        choice = Choice()
        for tries, rows in enumerate(self._heights(level)):
            best = choice.best
            if best is not None and (tries > _LOWER_TRIES or self._beaten(min(choice.floors.values()), best)):
                break
            least = rows * self.row_bytes[level]
            if least > self.device_budget and rows > 1:
                reason = f"needs {format_bytes(least)} of {format_bytes(self.device_budget)}"
                choice.rejected.setdefault("", f"windows alone, strips of {rows}: {reason}")
                continue
            self._try(choice, level, rows, value)
            if choice.best is not None and choice.best.schedule == self._first(level, choice.best.schedule.strip_rows):
                break
        return choice.best or min(choice.failed, key=self._size), list(choice.rejected.values())

    def _try(self, choice: Choice, level: int, rows: int, value: Value) -> None:
        """All that may be stored, in strips of that height."""
        variants = self._variants(level, rows)
        for number, variant in enumerate(variants):
            if choice.best is not None and all(
                self._beaten(choice.floors.get(_kind(other), 0.0), choice.best) for other in variants[number:]
            ):
                return
            enough = False
            for found in self._shares(level, variant, value, choice):
                fits, floor = self.fits(found), self._floor(found)
                choice.floors[_kind(variant)] = floor
                enough |= fits and not found.moved_bytes
                if not fits:
                    choice.failed.append(found)
                    if variant.name not in choice.rejected:
                        reason = f"{found.schedule.name}, strips of {rows}: {self._why(found.need)}"
                        choice.rejected[variant.name] = reason
                elif not self._beaten(self._score(found), choice.best):
                    choice.best = found
                if self._beaten(floor, choice.best):
                    break  # whatever of it waits in main memory
            if enough:
                return  # variants come in the order of their work

    def _beaten(self, score: float, best: Sized | None) -> bool:
        """Whether so much is not worth it, as others may have less overhead."""
        return best is not None and score * _LOWER_GAIN >= self._score(best)

    def _first(self, level: int, rows: int) -> LevelSchedule:
        """The schedule of least work."""
        return self._variants(level, rows)[0]

    def _size(self, found: Sized) -> tuple[bool, int]:
        return found.need.host_bytes > self.host_budget, found.need.peak_bytes

    def _why(self, need: Need) -> str:
        if need.peak_bytes > self.device_budget:
            return f"needs {format_bytes(need.peak_bytes)} of {format_bytes(self.device_budget)}"
        return f"needs {format_bytes(need.host_bytes)} of {format_bytes(self.host_budget)} host memory"

    def _heights(self, level: int) -> list[int]:
        """Strip heights to try, the best first."""
        size, last = self.sizes[level], self.sizes[-1]
        row = self.batch * size.frames * size.width * size.channels
        best = max(1, min(size.height, self.elements // row))
        if self.strip_rows is not None:
            best = max(1, min(size.height, self.strip_rows * size.height // last.height))
        heights = [best, *(max(1, best // share) for share in (4, 16, 256) if best // share >= 1), 1]
        if self.fast and self.strip_rows is None:
            heights = [rows // _FAST_ROWS * _FAST_ROWS or rows for rows in heights]
        heights = list(dict.fromkeys(heights))
        # Of a plane that waits some strips are on the device, beside all windows behind it.
        return heights[1:] or heights if self.waits and level < self.streamed_from else heights

    def _variants(self, level: int, rows: int) -> list[LevelSchedule]:
        """What may be stored, from least time to most; where nothing is allowed of what is wanted, what is allowed."""
        forced = self.prefer if self._is_large(self.sizes[level]) else None
        ways = list(ways_to_store(self.program.level_ops(level), rows, forced, self.host_budget))
        if self.program.streams:
            ways += [replace(found, store_ends=False) for found in ways if not found.store_blocks]
        ways = [found for found in ways if self.allow is None or self.allow(level, found)]
        if level >= self.streamed_from:
            variants = [found for found in ways if not found.store_ends]
        else:
            may_open = level >= self.first_open
            variants = [found for found in ways if found.store_ends and (found.store_blocks or may_open)]
        variants = variants or ways
        if not self.fast:
            return variants
        fast = [replace(variant, fast_convolution=True) for variant in variants if rows % _FAST_ROWS == 0]
        costs = [_COST.get(variant.name, 1.0) for variant in fast]
        costs += [PLAIN_COST * _COST.get(variant.name, 1.0) for variant in variants]
        return [variant for _, variant in sorted(zip(costs, fast + variants, strict=True), key=lambda pair: pair[0])]

    def _is_large(self, size: Extent) -> bool:
        return 4 * size.height * size.width > max(other.height * other.width for other in self.sizes)

    def _shares(self, level: int, variant: LevelSchedule, value: Value, choice: Choice) -> Iterator[Sized]:
        """The variant with everything on the device; then, where host memory may be used, with as much as fits.

        Not what copies so much that it would not replace the best so far, whether it fits or not. What may wait is as
        many bytes in strips of any height: those counted for higher ones tell what need not be counted again.
        """
        forced = self.prefer == "spill" and self._is_large(self.sizes[level])
        forced |= self.waits and level < self.streamed_from
        span = choice.spans.get(variant.name, 0)
        whole = None if span > self.device_budget and not forced else self.sizing.level(level, variant, value)
        if whole is not None and not forced:
            yield whole
        if not self.host_budget or variant.device_share == 0 or (whole and self.fits(whole) and not forced):
            return
        none = self.sizing.level(level, replace(variant, device_share=0.0), value)
        if not self.fits(none) or forced:
            yield none
            return
        if whole is not None:
            span = choice.spans[variant.name] = max(1, whole.need.peak_bytes - none.need.peak_bytes)
        share = int(_SHARES * (self.device_budget - none.need.peak_bytes) / span) / _SHARES
        if whole is None and self._beaten(self._score(none, 1 - share), choice.best):
            return
        while share > 0:
            some = self.sizing.level(level, replace(variant, device_share=min(share, 1 - 1 / _SHARES)), value)
            if self._beaten(self._score(some), choice.best):
                return
            if self.fits(some):
                yield some
                return
            share -= 1 / _SHARES
        yield none


def _kind(schedule: LevelSchedule) -> tuple[str, bool]:
    """What decides how much is computed."""
    return schedule.name, schedule.fast_convolution
