"""One cell of the benchmark: all candidates at one direction, size and dtype, taking turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import measure
from candidates import CANDIDATES, UNTILED, Maker, Prepared
from case import Case, run_untiled
from torch import Tensor

Say = Callable[[str], None]


@dataclass
class Row:
    """What is known of one candidate."""

    name: str
    direction: str
    size: int
    dtype: str
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    errors: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    failure: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with the median."""
        return asdict(self) | {"median_seconds": measure.median(self.seconds)}


@dataclass
class References:
    """What results are compared with, on the CPU: our untiled result in the same dtype, and the float64 run."""

    untiled: Tensor | None = None
    exact: Tensor | None = None


def run_cell(case: Case, makers: dict[str, Maker], *, repeats: int, float64: bool, say: Say) -> list[Row]:
    """A row for every candidate. Round 0 warms up, meters memory and takes the errors; the others are timed."""
    dtype = str(case.models.dtype).removeprefix("torch.")
    rows = {name: Row(name, case.direction, case.size, dtype) for name in makers}
    references = _run_references(case, float64=float64, untiled=UNTILED not in makers, say=say)
    ready: dict[str, Prepared] = {}
    for name, make in makers.items():
        say(f"warm-up: {name}")
        prepared = _warm_up(case, make, rows[name], references)
        if prepared is not None:
            ready[name] = prepared
    for number in range(1, repeats + 1):
        for name in list(ready):
            say(f"round {number} of {repeats}: {name}")
            _time(case, ready[name], rows[name])
            if rows[name].failure:
                del ready[name]
    return list(rows.values())


def _run_references(case: Case, *, float64: bool, untiled: bool, say: Say) -> References:
    """The float64 run where it is wanted, the untiled one where it is no candidate."""
    wanted: dict[str, Callable[[], Tensor]] = {}
    if float64:
        wanted["exact"] = lambda: run_untiled(case.models.double, case.direction, case.x.double())
    if untiled:
        wanted["untiled"] = lambda: CANDIDATES[UNTILED](case).run()
    references = References()
    for name, run in wanted.items():
        say(f"reference: {name}")
        result, failure = measure.attempt(run)
        if result is None:
            say(f"reference: {failure}")
        else:
            setattr(references, name, result.cpu())
    return references


def _warm_up(case: Case, make: Maker, row: Row, references: References) -> Prepared | None:
    """The candidate ready for timing, None if it failed."""
    device = case.models.device
    prepared, row.failure = measure.attempt(lambda: make(case))
    if prepared is None:
        return None
    row.details = prepared.details
    if device.type == "cuda":
        # The first run also brings in kernels, workspaces and a host's weights, which are not the run's memory.
        _, row.failure = measure.attempt(prepared.run)
    if row.failure is None:
        metered, row.failure = measure.attempt(lambda: measure.metered_run(prepared.run, device))
        if metered is not None:
            result, row.peak_bytes = metered
            if row.name == UNTILED:
                references.untiled = result.cpu()
            row.errors = measure.errors(result, references.untiled, references.exact)
    return None if row.failure else prepared


def _time(case: Case, prepared: Prepared, row: Row) -> None:
    seconds, row.failure = measure.attempt(lambda: measure.time_run(prepared.run, case.models.device)[1])
    if seconds is not None:
        row.seconds.append(seconds)
