"""The exact engine under plans: the one place here that calls planner and engine."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from case import CONFIG, DIRECTIONS, Case
from exact_vae.model_management.attention import attend
from exact_vae.model_management.memory import get_free_memory
from exact_vae.vae_model.errors import MemoryBudgetError
from exact_vae.vae_model.exact.memory.spill import Spill
from exact_vae.vae_model.exact.program import Program
from exact_vae.vae_model.exact.schedule import Schedule
from exact_vae.vae_model.exact.stream.context import Context
from exact_vae.vae_model.exact.stream.run import run_program
from exact_vae.vae_model.families.ldm.program import build_program
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

KINDS = ("resident", "recompute", "spill")
"""Schedules that the planner can be told to prefer."""
PLENTY_BYTES = 2**50
CLOSE = 1.05
"""How near the smallest plan is looked for."""


def program_of(model: Any, direction: str) -> Program:
    """The steps of one direction, 1x1 convolutions around it included."""
    if direction == "decode":
        return build_program(model.decoder, before=model.post_quant_conv)
    return build_program(model.encoder, after=model.quant_conv)


def plan_case(case: Case, *, prefer: str | None = None, budget_bytes: int | None = None) -> Any:
    """A plan for this machine as the library makes it, within `budget_bytes` or what is free."""
    from exact_vae.model_management.host import LocalHost
    from exact_vae.vae_model.exact.plan.search import make_plan

    device = case.models.device
    budget, host = LocalHost().budgets(device, budget_bytes)
    if prefer == "spill":
        host = get_free_memory("cpu")  # On a CPU the library spills nothing; here it is told to.
    program = program_of(case.models.ours, case.direction)
    options: dict[str, Any] = {"device_type": device.type, "prefer": prefer}
    return make_plan(program, tuple(case.x.shape), case.models.dtype, budget, host, **options)


def run_schedule(case: Case, program: Program, schedule: Schedule) -> tuple[Tensor, Spill]:
    """The result, and the store through which strips went."""
    models = case.models
    spill = Spill(models.device, None if models.device.type == "cuda" else _uncounted)
    context = Context(case.x.shape[0], models.dtype, models.device, spill=spill, attend=attend)
    out = torch.empty(case.result_shape, dtype=models.dtype, device=models.device)

    def emit(top: int, rows: Tensor) -> None:
        # An encoder's rows hold mean and log-variance; only the mean is the result.
        out[:, :, top : top + rows.shape[2]] = rows[:, : out.shape[1]]

    run_program(program, schedule, context, case.x, emit)
    return out, spill


def _uncounted(size: int) -> Tensor:
    """Host memory that the meter of live tensors does not see: on a CPU it would pass for device memory."""
    with _disable_current_modes():
        return torch.empty(size, dtype=torch.uint8)


def without_spill(schedule: Schedule) -> Schedule:
    """The same strips and the same work, everything on the device."""
    return tuple(replace(level, device_share=1.0, stream_attention=False) for level in schedule)


def describe_plan(case: Case, plan: Any) -> dict[str, Any]:
    """What the plan says, for the report. Its peak leaves out the result, which the meter counts."""
    return {
        "schedule": ", ".join(level.name for level in plan.schedule),
        "predicted_bytes": plan.peak_bytes + case.result_bytes,
        "host_bytes": plan.host_bytes,
        "moved_bytes": plan.moved_bytes,
        "work_ratio": plan.work_ratio,
        "plan": plan.as_dict(),
    }


def predict(model: Any, dtypes: dict[str, torch.dtype], sizes: Sequence[int], device_type: str) -> list[dict[str, Any]]:
    """Peaks of our plans at square sizes, result included, however much memory they take."""
    rows: list[dict[str, Any]] = []
    for direction in DIRECTIONS:
        program = program_of(model, direction)
        for size, (name, dtype) in itertools.product(sizes, dtypes.items()):
            shape, elements = _square(direction, size)
            for kind, plan in _plans(program, shape, dtype, device_type).items():
                peak = plan.peak_bytes + elements * dtype.itemsize
                row = {"direction": direction, "size": size, "dtype": name, "kind": kind, "peak_bytes": peak}
                rows.append(row | {"host_bytes": plan.host_bytes, "work_ratio": plan.work_ratio})
    return rows


def _square(direction: str, size: int) -> tuple[tuple[int, int, int, int], int]:
    """Shape of the input and elements of the result."""
    cells = size // CONFIG.factor
    latent, image = (1, CONFIG.latent_channels, cells, cells), (1, 3, size, size)
    shape, result = (latent, image) if direction == "decode" else (image, latent)
    return shape, torch.Size(result).numel()


def _plans(program: Program, shape: tuple[int, int, int, int], dtype: torch.dtype, device_type: str) -> dict[str, Any]:
    """The plan of every kind, and the smallest there is: the budget is halved towards it in steps of equal ratio."""
    from exact_vae.vae_model.exact.plan.search import make_plan

    def within(budget_bytes: float, prefer: str | None = None) -> Any:
        # On a CPU there is no other memory to wait in, so nothing is spilled there unless it is told to.
        host = 0 if device_type == "cpu" and prefer != "spill" else PLENTY_BYTES
        options: dict[str, Any] = {"device_type": device_type, "prefer": prefer}
        return make_plan(program, shape, dtype, int(budget_bytes), host, **options)

    plans = {kind: within(PLENTY_BYTES, kind) for kind in KINDS}
    low, best = 1.0, plans["resident"]
    while best.peak_bytes > CLOSE * low:
        middle = (low * best.peak_bytes) ** 0.5
        try:
            best = within(middle)
        except MemoryBudgetError:
            low = middle
    return plans | {"smallest": best}
