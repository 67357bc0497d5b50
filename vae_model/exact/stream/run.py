"""Running a program under a schedule."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..program import Program
from ..schedule import Schedule
from .context import Context
from .passes import Check, Emit, Performable
from .walk import Walk


def run_program(
    program: Program,
    schedule: Schedule,
    context: Context,
    x: Tensor,
    emit: Emit,
    *,
    prepare: Callable[[Tensor], Tensor] = lambda rows: rows,
    turned: bool = False,
    check: Check = lambda: None,
    report: Callable[[int], None] = lambda work: None,
) -> None:
    """Run a program on x; its result goes to `emit` strip by strip, equal to the module's own up to rounding.

    Args:    x: (B, C, H, W), or (T, C, H, W) of a clip, on any device, in any float dtype; converted strip by strip.
             turned: whether to go by columns, from left to right: all that is said of rows below is true of these.
             prepare: applied to each strip of x as it lies there, before the conversion.
             emit: called with (first row, rows (B, C, n, W)) in order; rows of the context's share, counted from its
             first one.
             check: called before every strip; it may raise to stop the run.
             report: called with the floating point operations done since the last call.
    Raises:  whatever `check` and `emit` raise, and the device's own error where memory runs out.
    """

    def perform(part: Performable) -> None:
        part.run(check, report)

    def give(first: int, strip: Tensor) -> None:
        emit(first, strip.transpose(2, 3) if turned else strip)

    if turned:
        assert program.turned is not None
        program, x = program.turned, x.transpose(2, 3)
    try:
        walk = Walk(program, schedule, context, perform, give)
        height = context.share.local(x.shape[2])
        walk.run(
            walk.start(height, x.shape[3], len(x) // context.batch, lambda top, bottom: prepare(x[:, :, top:bottom]))
        )
    finally:
        if context.spill is not None:
            context.spill.close()
