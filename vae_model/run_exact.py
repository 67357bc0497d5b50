"""Running a half exactly: image by image under a plan, and under a smaller plan where memory runs out on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .bytesize import format_bytes
from .errors import MemoryBudgetError
from .exact.context import Context
from .exact.run import run_program
from .exact.spill import Spill
from .halves import Half
from .host import PlanProtocol
from .run import Run

_CHANNELS_LAST = ("cpu", "cuda", "meta")
"""Devices whose convolutions are known to run well, or best, with channels innermost."""


@dataclass
class ExactRun:
    """One call of decode or encode by the engine."""

    run: Run
    half: Half
    strip_rows: int | None
    put: Callable[[int, int, Tensor], None]
    """(item, first row, rows (1, C, n, W)): takes finished rows into the output."""
    _reached: float = 0.0
    """The fraction reported: an item that starts again does not take it back."""

    def items(self, x: Tensor) -> PlanProtocol:
        """Run every item of x (B, C, H, W); the plan of the last one, after whatever happened on the way."""
        shape = (1, x.shape[1], x.shape[2], x.shape[3])
        run = self.run
        # What nothing fits into is refused before anything is loaded; what is free shows only once it is.
        run.load(self._plan(shape, run.limit, ample=run.limit is None).peak_bytes)
        plan = self._plan(shape, run.limit)
        for item in range(len(x)):
            while not self._attempt(plan, x, item):
                plan = self._smaller(plan, shape)
        return plan

    def _plan(self, shape: tuple[int, int, int, int], limit: int | None, *, ample: bool = False) -> PlanProtocol:
        run = self.run
        return run.host.make_plan(self.half.program, shape, run.dtype, run.device, limit, self.strip_rows, ample=ample)

    def _smaller(self, plan: PlanProtocol, shape: tuple[int, int, int, int]) -> PlanProtocol:
        """A plan of three quarters of the memory; MemoryBudgetError once there is none."""
        try:
            return self._plan(shape, plan.peak_bytes * 3 // 4)
        except MemoryBudgetError as error:
            free = format_bytes(self.run.host.get_free_memory(self.run.device))
            raise MemoryBudgetError(
                f"{self.run.what}: expected {format_bytes(plan.peak_bytes)} of memory, ran out with {free} free: "
                "free memory or use a smaller image"
            ) from error

    def _attempt(self, plan: PlanProtocol, x: Tensor, item: int) -> bool:
        """Run one item; False where memory ran out, with everything of the attempt freed."""
        run, done = self.run, 0
        run.host.check_interrupt()

        def report(work: int) -> None:
            nonlocal done
            done += work
            self._reached = max(self._reached, min(1.0, (item + done / max(1, plan.work)) / len(x)))
            run.report(self._reached)

        def prepare(rows: Tensor) -> Tensor:
            # Neither in less precision than the run's nor in less than the input's: rounded once, when all is done.
            return self.half.prepare(rows.to(torch.promote_types(rows.dtype, run.dtype)))

        try:
            run_program(
                self.half.program,
                plan.schedule,
                self._context(),
                x[item : item + 1],
                lambda top, rows: self.put(item, top, self.half.finish(rows)),
                prepare=prepare,
                check=run.host.check_interrupt,
                report=report,
            )
        except Exception as error:
            if not run.host.is_oom(error):
                raise
        else:
            return True
        run.host.soft_empty_cache()  # outside the except block: its traceback would keep the failed tensors alive
        return False

    def _context(self) -> Context:
        run = self.run
        channels_last = run.device.type in _CHANNELS_LAST
        spill = Spill(run.device)
        return Context(1, run.dtype, run.device, channels_last, spill=spill, attend=run.host.attend)
