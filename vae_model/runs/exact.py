"""Running a coder exactly: image by image under a plan, and under a smaller plan where memory runs out on the way."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import MemoryBudgetError
from ..errors.bytesize import format_bytes
from ..exact.memory.pinned import PinnedSlabs
from ..exact.memory.spill import Spill
from ..exact.plan.plan import Plan
from ..exact.stream.context import Context
from ..exact.stream.run import run_program
from ..families.coder import Coder
from ..host import ENDLESS, Report
from ..kernels.profile import profile_of
from .run import Run, coder_of

logger = logging.getLogger(__name__)

MODEST_WORK = 1.35
"""So many times the least work is done rather than other models sent away from the device."""


def run_exact(run: Run, coder: Coder | None = None) -> Plan:
    """Fill the result; the plan that did it, after whatever happened on the way.

    Args:    coder: what `coder_of` gives, where it has just been asked.
    Raises:  UnsupportedModule, MemoryBudgetError.
    """
    return ExactRun(run).items(coder)


@dataclass
class ExactRun:
    """One call of decode or encode by the engine."""

    run: Run
    _reached: float = 0.0
    """The fraction reported: an item that starts again does not take it back."""
    _largest: Tensor | None = field(default=None, init=False)
    """The largest value of the item's result so far: NaN once there was one."""
    _slabs: PinnedSlabs = field(default_factory=PinnedSlabs, init=False)
    """Where strips of all items wait, one item after the other."""
    _nan: bool = field(default=False, init=False)
    """Whether the item's result holds NaN."""

    def items(self, coder: Coder | None = None) -> Plan:
        """Run every item; the plan of the last one, after whatever happened on the way."""
        run = self.run
        # What nothing fits into is refused before anything is loaded; what is free shows only once it is. The model is
        # read once. It is read again where the host cannot promise that loading only moved its tensors: patches of a
        # host replace layers, weights or whole functions when it loads, and whatever was read before would run without
        # them. Nothing read is kept for the next run: no list of what may have changed since then would be complete.
        self.coder = coder or coder_of(run.vae, run.what)
        if not run.load(self._bytes_to_ask_for()):
            self.coder = coder_of(run.vae, run.what)
        plan = self._plan(run.budget)
        try:
            for item in range(0, len(run.x), run.group):
                plan = self._item(plan, item)
                if self._nan:
                    plan = self._explain_nan(plan, item)
        finally:
            self._slabs.close()
        return plan

    @property
    def report(self) -> Report:
        """What is told of this run."""
        return self.run.watch.report

    def _bytes_to_ask_for(self) -> int:
        """Beside the weights. Other models stay where they are if the free memory does nearly as well."""
        if self.run.budget is not None:
            return self._plan(self.run.budget).peak_bytes
        best = self._plan(ENDLESS)
        try:
            now = self._plan(None)
        except MemoryBudgetError:
            return best.peak_bytes
        modest = now.moved_bytes == 0 and now.work <= MODEST_WORK * best.work
        return now.peak_bytes if modest else best.peak_bytes

    def _item(self, plan: Plan, item: int) -> Plan:
        """Run one item; the plan that did it."""
        while True:
            self.report.plan = plan
            if self._attempt(plan, item):
                return plan
            plan = self._smaller(plan)

    # -- NaN -------------------------------------------------------------------------------------------------------

    def _explain_nan(self, plan: Plan, item: int) -> Plan:
        """Say where NaN came from. Is the number format the cause, this item and those after it run in float32."""
        run, name = self.run, str(self.run.dtype).removeprefix("torch.")
        where = f"{run.what} of image {item + 1} of {len(run.x)}"
        if bool(run.x[item : item + run.group].isnan().any()):
            source = "latent" if run.what == "decode" else "image"
            self._warn(f"{where}: the {source} already holds NaN: look at what made it; the VAE is not the cause")
            return plan
        if run.dtype.itemsize > 2:
            self._warn(f"{where}: NaN was born in the VAE in {name}: its weights or its input are broken")
            return plan
        self._warn(f"{where}: NaN was born in the VAE in {name}: repeated in float32; load this VAE in float32")
        self.run = replace(run, dtype=torch.float32)
        self.report.dtype = self.report.repeated_in = "float32"
        plan = self._item(self._plan(run.budget), item)
        if self._nan:
            self._warn(f"{where}: NaN in float32, too: the weights of this VAE are broken")
        return plan

    def _warn(self, text: str) -> None:
        self.report.warnings.append(text)
        logger.warning("%s", text)

    # -- one attempt -----------------------------------------------------------------------------------------------

    @property
    def _shape(self) -> tuple[int, int, int, int]:
        """Of one item."""
        return (self.run.group, *self.run.x.shape[1:])  # pyright: ignore[reportReturnType]

    def _plan(self, budget: int | None) -> Plan:
        run = self.run
        return run.host.make_plan(self.coder.program, self._shape, run.dtype, run.device, budget, run.strip_rows)

    def _smaller(self, plan: Plan) -> Plan:
        """A plan of three quarters of the memory; MemoryBudgetError once there is none."""
        smaller, needed = None, format_bytes(plan.peak_bytes)
        free = format_bytes(self.run.host.get_free_memory(self.run.device))
        with contextlib.suppress(MemoryBudgetError):
            smaller = self._plan(plan.peak_bytes * 3 // 4)
        if smaller is None:  # outside the block: one error, not two of which one led to the other
            raise MemoryBudgetError(
                f"{self.run.what}: expected {needed} of memory, ran out with {free} free: "
                f"free memory or use a smaller image{' or fewer frames' if self.run.group > 1 else ''}"
            )
        text = "%s: memory ran out with %s free on the way through a plan of %s: started again with one of %s"
        logger.warning(text, self.run.what, free, needed, format_bytes(smaller.peak_bytes))
        return smaller

    def _attempt(self, plan: Plan, item: int) -> bool:
        """Run one item; False where memory ran out, with everything of the attempt freed."""
        run, done = self.run, 0
        run.host.check_interrupt()

        def report(work: int) -> None:
            nonlocal done
            done += work
            self._reached = max(self._reached, min(1.0, (item + run.group * done / max(1, plan.work)) / len(run.x)))
            run.report(self._reached)

        def prepare(rows: Tensor) -> Tensor:
            # Neither in less precision than the run's nor in less than the input's: rounded once, when all is done.
            return self.coder.prepare(rows.to(torch.promote_types(rows.dtype, run.dtype)))

        try:
            run_program(
                self.coder.program,
                plan.schedule,
                self._context(),
                run.x[item : item + run.group],
                lambda first, strip: self._put(item, first, strip, plan.turned),
                prepare=prepare,
                turned=plan.turned,
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

    def _put(self, item: int, first: int, strip: Tensor, turned: bool) -> None:
        largest = strip.amax()
        self._largest = largest if self._largest is None else torch.maximum(self._largest, largest)
        self.run.put(item, first, self.coder.finish(strip), by_columns=turned)

    def _context(self) -> Context:
        run, host = self.run, self.run.host
        channels_last = profile_of(run.device.type).channels_last
        spill = Spill(run.device, slabs=self._slabs)
        batch, _ = self.coder.program.batch_and_frames(run.group)
        return Context(
            batch,
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
