"""The candidates: a table from name to maker. A maker prepares everything that is not to be timed."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import others
import planned
from case import Case, run_untiled
from exact_vae.model_management.memory import get_free_memory
from exact_vae.vae_model.errors.bytesize import format_bytes
from exact_vae.vae_model.families.table import family_of
from torch import Tensor

UNTILED, BASELINE = "ExactVAE untiled", "diffusers untiled"
"""Errors are told against the first, times against the second."""
SHARES = (0.75, 0.5, 0.25, 0.125)
"""Memory budgets, as shares of what the resident schedule takes."""


class Prepared(NamedTuple):
    """A candidate ready to run: `run` makes the raw image or the mean; `details` go into the report."""

    run: Callable[[], Tensor]
    details: dict[str, Any]


Maker = Callable[[Case], Prepared]


def _require_memory(case: Case) -> None:
    """A system that runs out of main memory kills the whole process, so on a CPU untiled runs are not even tried."""
    models = case.models
    elements = family_of(models.base).untiled_elements(models.config, case.direction) * case.size**2
    needed, free = int(elements * models.dtype.itemsize), get_free_memory(models.device)
    if models.device.type == "cpu" and needed > free:
        raise MemoryError(f"not run: needs about {format_bytes(needed)}, {format_bytes(free)} are free")


def _ours_untiled(case: Case) -> Prepared:
    _require_memory(case)
    return Prepared(lambda: run_untiled(case.models.ours, case.direction, case.x), {})


def _diffusers(case: Case, tiling: bool) -> Prepared:
    if not tiling:
        _require_memory(case)
    model = others.diffusers_model(case.models, tiling=tiling)
    return Prepared(lambda: others.run_diffusers(model, case.direction, case.x), {})


def _comfyui(case: Case, tiled: bool) -> Prepared:
    if not tiled:
        _require_memory(case)
    vae = others.comfyui_vae(case.models)
    vae = vae if tiled else others.without_fallback(vae)
    return Prepared(lambda: others.run_comfyui(vae, case.direction, case.x, tiled=tiled), {})


def _planned(case: Case, plan: Any, budget_bytes: int | None = None) -> Prepared:
    details = planned.describe_plan(case, plan) | {"budget_bytes": budget_bytes}
    program = planned.program_of(case.models.ours, case.direction)

    def run() -> Tensor:
        result, spill = planned.run_schedule(case, program, plan.schedule)
        details["host_peak_bytes"] = spill.peak_host_bytes
        return result

    return Prepared(run, details)


def _preferred(case: Case, kind: str) -> Prepared:
    return _planned(case, planned.plan_case(case, prefer=kind))


def _within(case: Case, share: float) -> Prepared:
    budget = int(share * planned.plan_case(case, prefer="resident", budget_bytes=planned.PLENTY_BYTES).peak_bytes)
    return _planned(case, planned.plan_case(case, budget_bytes=budget), budget)


def within_name(share: float) -> str:
    """The name of the candidate that is planned within a share of the resident memory."""
    return f"ExactVAE in {100 * share:.3g} %"


CANDIDATES: dict[str, Maker] = {
    UNTILED: _ours_untiled,
    BASELINE: partial(_diffusers, tiling=False),
    "diffusers tiled": partial(_diffusers, tiling=True),
    "ComfyUI untiled": partial(_comfyui, tiled=False),
    "ComfyUI tiled": partial(_comfyui, tiled=True),
    "ExactVAE resident": partial(_preferred, kind="resident"),
    "ExactVAE recompute": partial(_preferred, kind="recompute"),
    "ExactVAE spilled": partial(_preferred, kind="spill"),
    **{within_name(share): partial(_within, share=share) for share in SHARES},
}


def choose(pattern: str | None, *, comfyui: bool) -> dict[str, Maker]:
    """The candidates whose name the regular expression finds, ComfyUI's only where it can be imported."""
    found = re.compile(pattern or "", re.IGNORECASE)
    names = [name for name in CANDIDATES if found.search(name) and (comfyui or not name.startswith("ComfyUI"))]
    if not names:
        raise ValueError(f"--only: expected a part of one of {', '.join(CANDIDATES)}, got {pattern!r}")
    return {name: CANDIDATES[name] for name in names}
