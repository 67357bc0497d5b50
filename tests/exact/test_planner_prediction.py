"""What a plan predicts against what the meter sees: full-width KL-f8 in 16 bits, on tensors without data.

The device's tensors are on "meta"; host buffers are made outside the meter, so that it sees the device alone.
"""

from functools import cache
from typing import Any

import pytest
import torch
from exact_vae.benchmarks.meter import LiveTensorMeter
from exact_vae.tests.covering import covering_set
from exact_vae.vae_model.errors import MemoryBudgetError
from exact_vae.vae_model.exact.memory.spill import Spill
from exact_vae.vae_model.exact.plan.search import make_plan
from exact_vae.vae_model.exact.program import Program
from exact_vae.vae_model.exact.stream.context import Context
from exact_vae.vae_model.exact.stream.past import Past
from exact_vae.vae_model.exact.stream.run import run_program
from exact_vae.vae_model.families.ldm.autoencoder import build_kl
from exact_vae.vae_model.families.ldm.config import KLConfig, LevelsConfig
from exact_vae.vae_model.families.ldm.program import build_program
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

META = torch.device("meta")
GIB = 1024**3
AMPLE = 2**62
SIZES = [(128, 128), (136, 200), (256, 256), (392, 520), (208, 384), (264, 520)]
"""Height and width of the image."""
SHARES = [1.0, 0.7, 0.4, 0.1, 0.0]
"""Where the budget lies between the smallest that does (0) and what a run with everything on the device takes (1)."""


@cache
def programs() -> dict[str, Program]:
    levels = LevelsConfig(ch=128, widths=(128, 256, 512, 512), num_res_blocks=2)
    with META:
        model: Any = build_kl(KLConfig(4, 4, levels, levels)).half().eval()
    return {
        "decode": build_program(model.decoder, before=model.post_quant_conv),
        "encode": build_program(model.encoder, after=model.quant_conv),
    }


def input_shape(direction: str, height: int, width: int) -> tuple[int, int, int, int]:
    return (1, 4, height // 8, width // 8) if direction == "decode" else (1, 3, height, width)


def outside_the_meter(size: int) -> Tensor:
    with _disable_current_modes():
        return torch.empty(size, dtype=torch.uint8, device=META)


def fused_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What a fused kernel allocates: its result."""
    return torch.empty_like(q)


def measure(program: Program, plan: Any, shape: tuple[int, int, int, int], past: Past | None = None) -> tuple[int, int]:
    """(device peak, host peak) of a run under a plan; of a part of a clip without what stays."""
    spill = Spill(META, outside_the_meter)
    context = Context(1, torch.float16, META, spill=spill, attend=fused_attention, past=past)
    x = torch.empty(shape, dtype=torch.float16, device=META)

    def run() -> None:
        run_program(program, plan.schedule, context, x, lambda top, rows: None, turned=plan.turned)

    with torch.inference_mode():
        if past is not None:
            run()  # what stays is there from then on
        with LiveTensorMeter("meta") as meter:
            run()
    assert meter.current_bytes == 0
    return meter.peak_bytes, spill.peak_host_bytes


def assert_predicted(program: Program, plan: Any, shape: tuple[int, int, int, int], past: Past | None = None) -> None:
    device, host = measure(program, plan, shape, past)
    assert 1.0 <= plan.peak_bytes / device <= 1.15, plan.table()
    assert plan.peak_bytes <= plan.device_budget
    assert host <= plan.host_bytes <= max(1.15 * host, host + 2**24), plan.table()


CELLS = covering_set(SHARES, SIZES, ("decode", "encode"))


@pytest.mark.parametrize(("share", "size", "direction"), CELLS)
def test_every_size_under_every_budget(share: float, size: tuple[int, int], direction: str) -> None:
    program, shape = programs()[direction], input_shape(direction, *size)
    resident = make_plan(program, shape, torch.float16, AMPLE, device_type="meta")
    with pytest.raises(MemoryBudgetError) as refused:
        make_plan(program, shape, torch.float16, 1, AMPLE, device_type="meta")
    smallest = refused.value.needed_bytes
    assert smallest is not None
    budget = int(smallest + share * (resident.peak_bytes - smallest))
    plan = make_plan(program, shape, torch.float16, budget, AMPLE, device_type="meta")
    assert_predicted(program, plan, shape)


@pytest.mark.parametrize(("side", "limit"), [(4096, 1.0), (8192, 2.5)])
def test_spilling_is_planned_to_keep_the_device_small_at_large_sizes(side: int, limit: float) -> None:
    # Predictions are held to the meter above; runs of this size take minutes even without data.
    program, shape = programs()["decode"], input_shape("decode", side, side)
    plan = make_plan(program, shape, torch.float16, int(limit * GIB), AMPLE, device_type="meta")
    assert plan.peak_bytes <= limit * GIB
    assert plan.moved_bytes > 0
