"""The model run on whole images, as many at once as fit: what "exact" is held to."""

from __future__ import annotations

from ..errors import MemoryBudgetError
from ..errors.bytesize import format_bytes
from .run import ModelRun

MAX_CHUNK = 4
"""Images run together at most: larger batches are no faster and take proportionally more memory."""


def run_untiled(run: ModelRun) -> None:
    """Fill the result, as many items at once as fit. An item is one image, or a group of frames.

    MemoryBudgetError before any work where one item cannot fit: in the user's budget, or in the memory of a CPU, whose
    operating system would end the process instead of refusing.
    """
    x, group, needed = run.x, run.group, run.untiled_bytes(run.x.shape[2], run.x.shape[3])
    if run.budget is not None and needed > run.budget:
        raise _does_not_fit(run, needed, run.budget)
    run.load(needed)
    available = run.available()
    if needed > available and run.device.type == "cpu":
        raise _does_not_fit(run, needed, available)
    chunk = group * max(1, min(len(x), MAX_CHUNK // group, available // max(1, needed)))
    start = 0
    while start < len(x):
        result = run.attempt(x[start : start + chunk])
        if result is None:
            if chunk == group:
                raise _does_not_fit(run, needed, run.host.get_free_memory(run.device))
            chunk = group
            continue
        run.put(start, 0, result)
        del result
        start += chunk
        run.report(min(1.0, start / len(x)))


def _does_not_fit(run: ModelRun, needed: int, available: int) -> MemoryBudgetError:
    unit = "pixels" if run.what == "decode" else "latent cells"
    source = "allowed" if run.budget is not None else "free"
    return MemoryBudgetError(
        f"{run.what} to {run.out.shape[3]} x {run.out.shape[2]} {unit}: "
        f"expected {format_bytes(needed)} of activations to fit, "
        f"got {format_bytes(available)} {source}: use a smaller image{' or fewer frames' if run.group > 1 else ''}, "
        "free memory, or method 'blend' (approximate)"
    )
