"""From a program, a shape and a budget to a plan: which schedule every level gets. Pure arithmetic.

Levels are decided in the order they run. Per level the least predicted time that fits wins, which comes out as:
resident, recompute, partial spill, full spill, computing everything again, each with lower strips if nothing fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from ...errors import MemoryBudgetError
from ...errors.bytesize import format_bytes
from ...kernels.method import Machine
from ...kernels.methods import this_machine
from ...kernels.profile import profile_of
from ..program import Extent, Program
from ..schedule import LevelSchedule
from ..sharding.share import WHOLE, Share
from ..stream.value import Value
from .choice import Choice
from .plan import LevelPlan, Plan
from .sizing import Need, Sized, Sizing, level_sizes
from .ways import ways_to_store

_SHARES = 16
_NAMED_TRIES = 4
_NAMED_SLACK = 1.006
"""What rounding to three digits takes away at most."""
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
) -> Plan:
    """The plan of least predicted time within the budgets.

    Args:    shape: (B, C, H, W) of the input, a latent or an image.
             device_budget: bytes for activations and workspace, on top of weights, input and finished output.
             host_budget: bytes of host memory for strips that wait there; 0 spills nothing.
             prefer: "resident", "recompute" or "spill" allows only that at levels of more than a quarter of the pixels.
             strip_rows: rows of the last level's strips, other levels in proportion; lower where they do not fit. None
             chooses.
             share: which rows of the whole image these are. allow: (level, schedule) -> whether it may be chosen.
             fused_attention: (channels) -> whether the device has attention that writes no scores down.
             machine: what convolutions depend on; None for this one, which is asked before anything is planned.
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
    sizing = Sizing(program, shape, dtype, device_type, share, fused_attention, machine)
    search = _Search(sizing, shape, dtype, device_budget, host_budget, device_type, prefer, strip_rows, allow)
    found = search.run_any()
    if isinstance(found, Plan):
        return found
    # Another budget may lead to other schedules: what is named as enough has been tried.
    for _ in range(_NAMED_TRIES):
        search.device_budget = int(found * _NAMED_SLACK)
        again = search.run_any()
        if isinstance(again, Plan):
            break
        found = max(again, search.device_budget)
    raise MemoryBudgetError(search.message(search.device_budget, device_budget), search.device_budget)


class _Search:
    """The choice of every level's schedule."""

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
        self.shape, self.dtype = shape, dtype
        self.device_budget, self.host_budget = device_budget, host_budget
        self.prefer, self.strip_rows, self.allow = prefer, strip_rows, allow
        self.sizes = level_sizes(self.program, shape[2], shape[3])
        profile = profile_of(device_type)
        self.elements, self.work_per_byte = profile.strip_elements, profile.work_per_byte
        self.smallest_host_bytes = 0
        self.fast = profile.fewer_multiplications and dtype == torch.float32
        self.first_open = 0
        """The first level that may leave its result to the levels behind it, as something to compute."""
        self.left_open = False

    def run_any(self) -> Plan | int:
        """As `run`. What a level leaves to later ones costs memory there: where that is too much, less is left."""
        self.first_open = 0
        found, least = self.run(), self.smallest_host_bytes
        for level in range(1, len(self.sizes)):
            if isinstance(found, Plan) or not self.left_open:
                break
            self.first_open = level
            again = self.run()
            if isinstance(again, Plan) or again < found:
                found, least = again, self.smallest_host_bytes
        self.smallest_host_bytes = least
        return found

    def run(self) -> Plan | int:
        """Level by level; a level that nothing fits is given its smallest schedule, to tell what would be needed.

        Returns: the plan, or the bytes that the smallest schedules need where one of them does not fit.
        """
        value, levels, total, failed = self.sizing.start, list[LevelPlan](), Need(), False
        self.left_open = False
        for level, size in enumerate(self.sizes):
            found, rejected = self._level(level, value)
            value, need = found.value, found.need
            self.left_open |= value.plane is None and not found.schedule.store_blocks and level + 1 < len(self.sizes)
            failed |= not self._fits(found)
            levels.append(LevelPlan(size.height, size.width, size.channels, found.schedule, need, tuple(rejected)))
            total += need
        if failed:
            self.smallest_host_bytes = total.host_bytes
            return total.peak_bytes
        return Plan(
            self.shape, self.dtype, self.device_budget, self.host_budget, tuple(levels), total,
            self.program.flops(self.shape),
        )  # fmt: skip

    def message(self, needed: int, budget: int) -> str:
        """Why there is no plan."""
        size = self.sizes[-1] if self.sizes[-1].height >= self.sizes[0].height else self.sizes[0]
        host = self.smallest_host_bytes
        also = f" and {format_bytes(host)} of host memory" if host else ""
        return (
            f"{size.width} x {size.height}: expected a budget of at least {format_bytes(needed)}{also}, "
            f"got {format_bytes(budget)}: allow more memory or use a smaller image"
        )

    def _fits(self, found: Sized) -> bool:
        return found.fits(self.device_budget, self.host_budget)

    def _score(self, found: Sized) -> float:
        return self._floor(found) + self.work_per_byte * found.moved_bytes

    def _floor(self, found: Sized) -> float:
        """The score without any copies; neither the strips' height nor what waits elsewhere changes it."""
        return (PLAIN_COST if self.fast and not found.schedule.fast_convolution else 1.0) * found.work

    def _level(self, level: int, value: Value) -> tuple[Sized, list[str]]:
        """The best schedule that fits, else the smallest one; and a line for each that was rejected."""
        choice = Choice()
        for tries, rows in enumerate(self._heights(level)):
            if choice.best is not None and (tries > _LOWER_TRIES or self._beaten(choice.floor, choice.best)):
                break
            self._try(choice, level, rows, value)
            if choice.best is not None and choice.best.schedule == self._first(level, choice.best.schedule.strip_rows):
                break
        return choice.best or min(choice.failed, key=self._size), list(choice.rejected.values())

    def _try(self, choice: Choice, level: int, rows: int, value: Value) -> None:
        """All that may be stored, in strips of that height."""
        variants = self._variants(level, rows)
        for number, variant in enumerate(variants):
            if choice.best is not None and all(
                other.name in choice.judged
                and self._beaten(self._floor(self.sizing.level(level, other, value)), choice.best)
                for other in variants[number:]
            ):
                return
            choice.judged.add(variant.name)
            enough = False
            for found in self._shares(level, variant, value, choice.best):
                fits, floor = self._fits(found), self._floor(found)
                enough |= fits and not found.moved_bytes
                if not fits:
                    choice.failed.append(found)
                    if variant.name not in choice.rejected:
                        reason = f"{found.schedule.name}, strips of {rows}: {self._why(found.need)}"
                        choice.rejected[variant.name] = reason
                elif not self._beaten(self._score(found), choice.best):
                    choice.best = found
                choice.floor = min(choice.floor, floor)
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
        row = self.shape[0] * size.width * size.channels
        best = max(1, min(size.height, self.elements // row))
        if self.strip_rows is not None:
            best = max(1, min(size.height, self.strip_rows * size.height // last.height))
        heights = [best, *(max(1, best // share) for share in (4, 16, 256) if best // share >= 1), 1]
        if self.fast and self.strip_rows is None:
            heights = [rows // _FAST_ROWS * _FAST_ROWS or rows for rows in heights]
        return list(dict.fromkeys(heights))

    def _variants(self, level: int, rows: int) -> list[LevelSchedule]:
        """What may be stored, from least time to most."""
        forced = self.prefer if self._is_large(self.sizes[level]) else None
        ways = ways_to_store(self.program.level_ops(level), rows, forced, self.host_budget)
        variants = [found for found in ways if self.allow is None or self.allow(level, found)]
        if level < self.first_open:
            variants = [found for found in variants if found.store_blocks]
        if not self.fast:
            return variants
        fast = [replace(variant, fast_convolution=True) for variant in variants if rows % _FAST_ROWS == 0]
        costs = [_COST.get(variant.name, 1.0) for variant in fast]
        costs += [PLAIN_COST * _COST.get(variant.name, 1.0) for variant in variants]
        return [variant for _, variant in sorted(zip(costs, fast + variants, strict=True), key=lambda pair: pair[0])]

    def _is_large(self, size: Extent) -> bool:
        return 4 * size.height * size.width > max(other.height * other.width for other in self.sizes)

    def _shares(self, level: int, variant: LevelSchedule, value: Value, best: Sized | None) -> Iterator[Sized]:
        """The variant with everything on the device; then, where host memory may be used, with as much as fits.

        Not what copies so much that it would not replace `best`, whether it fits or not.
        """
        forced = self.prefer == "spill" and self._is_large(self.sizes[level])
        whole = self.sizing.level(level, variant, value)
        if not forced:
            yield whole
        if not self.host_budget or (self._fits(whole) and not forced) or variant.device_share == 0:
            return
        none = self.sizing.level(level, replace(variant, device_share=0.0), value)
        if not self._fits(none) or forced:
            yield none
            return
        room, span = self.device_budget - none.need.peak_bytes, whole.need.peak_bytes - none.need.peak_bytes
        share = int(_SHARES * room / max(1, span)) / _SHARES
        while share > 0:
            some = self.sizing.level(level, replace(variant, device_share=min(share, 1 - 1 / _SHARES)), value)
            if self._beaten(self._score(some), best):
                return
            if self._fits(some):
                yield some
                return
            share -= 1 / _SHARES
        yield none
