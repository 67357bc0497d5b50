"""Running a half exactly: image by image under a plan, and under a smaller plan where memory runs out on the way."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import MemoryBudgetError
from ..errors.bytesize import format_bytes
from ..exact.memory.pinned import PinnedSlabs
from ..exact.memory.spill import Spill
from ..exact.stream.context import Context
from ..exact.stream.run import run_program
from ..families.coder import Coder
from ..host import PlanProtocol, Report, Watch
from ..kernels.profile import profile_of
from .untiled import Run

logger = logging.getLogger(__name__)

MODEST_WORK = 1.35
"""So many times the least work is done rather than other models sent away from the device."""


@dataclass
class ExactRun:
    """One call of decode or encode by the engine."""

    run: Run
    make_half: Callable[[], Coder]
    """Raises UnsupportedModule. Called before and after loading, for a host may apply patches when it loads."""
    strip_rows: int | None
    put: Callable[[int, int, Tensor], None]
    """(first item, first row, rows (1 or group, C, n, W)): takes finished rows into the output."""
    watch: Watch
    group: int = 1
    """Frames that a temporal decoder mixes: they run together, as one item."""
    _reached: float = 0.0
    """The fraction reported: an item that starts again does not take it back."""
    _largest: Tensor | None = field(default=None, init=False)
    """The largest value of the item's result so far: NaN once there was one."""
    _slabs: PinnedSlabs = field(default_factory=PinnedSlabs, init=False)
    """Where strips of all items wait, one item after the other."""
    _nan: bool = field(default=False, init=False)
    """Whether the item's result holds NaN."""

    def items(self, x: Tensor) -> PlanProtocol:
        """Run every item of x (B, C, H, W); the plan of the last one, after whatever happened on the way."""
        shape = (self.group, x.shape[1], x.shape[2], x.shape[3])
        # What nothing fits into is refused before anything is loaded; what is free shows only once it is.
        self.half = self.make_half()
        self.run.load(self._reservation(shape))
        self.half = self.make_half()
        self.watch.loaded()
        plan = self._plan(shape, self.run.limit)
        try:
            for item in range(0, len(x), self.group):
                plan = self._item(plan, x, item)
                if self._nan:
                    plan = self._explain_nan(plan, x, item)
        finally:
            self._slabs.close()
        return plan

    @property
    def report(self) -> Report:
        """What is told of this run."""
        return self.watch.report

    def _reservation(self, shape: tuple[int, int, int, int]) -> int:
        """Bytes to ask the host for. Other models stay where they are if the free memory does nearly as well."""
        run = self.run
        if run.limit is not None:
            return self._plan(shape, run.limit).peak_bytes
        ample = self._plan(shape, None, ample=True)
        try:
            now = self._plan(shape, None)
        except MemoryBudgetError:
            return ample.peak_bytes
        modest = now.moved_bytes == 0 and now.work <= MODEST_WORK * ample.work
        return now.peak_bytes if modest else ample.peak_bytes

    def _item(self, plan: PlanProtocol, x: Tensor, item: int) -> PlanProtocol:
        """Run one item; the plan that did it."""
        shape = (self.group, x.shape[1], x.shape[2], x.shape[3])
        while True:
            self.report.plan = plan
            if self._attempt(plan, x, item):
                return plan
            plan = self._smaller(plan, shape)

    # -- NaN -------------------------------------------------------------------------------------------------------

    def _explain_nan(self, plan: PlanProtocol, x: Tensor, item: int) -> PlanProtocol:
        """Say where NaN came from. Is the number format the cause, this item and those after it run in float32."""
        run, name = self.run, str(self.run.dtype).removeprefix("torch.")
        where = f"{run.what} of image {item + 1} of {len(x)}"
        if bool(x[item : item + self.group].isnan().any()):
            source = "latent" if run.what == "decode" else "image"
            self._warn(f"{where}: the {source} already holds NaN: look at what made it; the VAE is not the cause")
            return plan
        if run.dtype.itemsize > 2:
            self._warn(f"{where}: NaN was born in the VAE in {name}: its weights or its input are broken")
            return plan
        self._warn(f"{where}: NaN was born in the VAE in {name}: repeated in float32; load this VAE in float32")
        self.run = replace(run, dtype=torch.float32)
        self.report.dtype = self.report.repeated_in = "float32"
        plan = self._item(self._plan((self.group, *x.shape[1:]), run.limit), x, item)  # pyright: ignore[reportArgumentType]
        if self._nan:
            self._warn(f"{where}: NaN in float32, too: the weights of this VAE are broken")
        return plan

    def _warn(self, text: str) -> None:
        self.report.warnings.append(text)
        logger.warning("%s", text)

    # -- one attempt -----------------------------------------------------------------------------------------------

    def _plan(self, shape: tuple[int, int, int, int], limit: int | None, *, ample: bool = False) -> PlanProtocol:
        run = self.run
        return run.host.make_plan(self.half.program, shape, run.dtype, run.device, limit, self.strip_rows, ample=ample)

    def _smaller(self, plan: PlanProtocol, shape: tuple[int, int, int, int]) -> PlanProtocol:
        """A plan of three quarters of the memory; MemoryBudgetError once there is none."""
        smaller, needed = None, format_bytes(plan.peak_bytes)
        free = format_bytes(self.run.host.get_free_memory(self.run.device))
        with contextlib.suppress(MemoryBudgetError):
            smaller = self._plan(shape, plan.peak_bytes * 3 // 4)
        if smaller is None:  # outside the block: one error, not two of which one led to the other
            raise MemoryBudgetError(
                f"{self.run.what}: expected {needed} of memory, ran out with {free} free: "
                "free memory or use a smaller image"
            )
        text = "%s: memory ran out with %s free on the way through a plan of %s: started again with one of %s"
        logger.warning(text, self.run.what, free, needed, format_bytes(smaller.peak_bytes))
        return smaller

    def _attempt(self, plan: PlanProtocol, x: Tensor, item: int) -> bool:
        """Run one item; False where memory ran out, with everything of the attempt freed."""
        run, done = self.run, 0
        run.host.check_interrupt()

        def report(work: int) -> None:
            nonlocal done
            done += work
            self._reached = max(self._reached, min(1.0, (item + self.group * done / max(1, plan.work)) / len(x)))
            run.report(self._reached)
            self.watch.fraction(self._reached)

        def prepare(rows: Tensor) -> Tensor:
            # Neither in less precision than the run's nor in less than the input's: rounded once, when all is done.
            return self.half.prepare(rows.to(torch.promote_types(rows.dtype, run.dtype)))

        try:
            run_program(
                self.half.program,
                plan.schedule,
                self._context(),
                x[item : item + self.group],
                lambda top, rows: self._put(item, top, rows),
                prepare=prepare,
                check=run.host.check_interrupt,
                report=report,
            )
            largest = self._largest
            self._nan = largest is not None and largest.device.type != "meta" and bool(largest.isnan())
            del largest
        except Exception as error:
            if not run.host.is_oom(error):
                raise
        else:
            return True
        finally:
            self._largest = None
        run.host.soft_empty_cache()  # outside the except block: its traceback would keep the failed tensors alive
        return False

    def _put(self, item: int, top: int, rows: Tensor) -> None:
        largest = rows.amax()
        self._largest = largest if self._largest is None else torch.maximum(self._largest, largest)
        self.put(item, top, self.half.finish(rows))

    def _context(self) -> Context:
        run, host = self.run, self.run.host
        channels_last = profile_of(run.device.type).channels_last
        spill = Spill(run.device, slabs=self._slabs)
        return Context(
            self.group,
            run.dtype,
            run.device,
            channels_last,
            host.weights,
            spill,
            host.attend,
            fused_attention=self._fused,
        )

    def _fused(self, channels: int) -> bool:
        return self.run.host.fused_attention(channels, self.run.dtype, self.run.device)
