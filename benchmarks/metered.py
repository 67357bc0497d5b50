"""The device's peak of runs too large to be run: spilled, in float16, on tensors without data.

`python benchmarks/metered.py 4096:1.0 8192:2.5` plans a square decode and encode for each size in pixels and budget in
GiB, walks through every operation on the "meta" device under the live-tensor meter, and prints both peaks. Of every
block of keys the first two slices are taken: the others make and free tensors of the same sizes.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from case import LEVELS
from exact_vae.vae_model.attention import streamed
from exact_vae.vae_model.exact.memory.spill import Spill
from exact_vae.vae_model.exact.plan.search import make_plan
from exact_vae.vae_model.exact.program import Program
from exact_vae.vae_model.exact.stream.context import Context
from exact_vae.vae_model.exact.stream.run import run_program
from exact_vae.vae_model.families.ldm.autoencoder import build_kl
from exact_vae.vae_model.families.ldm.config import KLConfig
from exact_vae.vae_model.families.ldm.program import build_program
from meter import LiveTensorMeter
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

META = torch.device("meta")
GIB = 1024**3
SLICES = 2


class FewSlices(streamed.LargeStreamedAttention):
    """Takes the first slices only; without data there is nothing to be wrong."""

    def __init__(self, q: Tensor, values: int) -> None:
        super().__init__(q, values)
        self._q = q[:, : SLICES * self._slice]

    def add(self, k: Tensor, v: Tensor, check: Any = lambda: None) -> None:
        super().add(k[:, : SLICES * self._slice], v[:, : SLICES * self._slice], check)


def outside_the_meter(size: int) -> Tensor:
    """A host buffer; the meter shall see the device alone."""
    with _disable_current_modes():
        return torch.empty(size, dtype=torch.uint8, device=META)


def metered(program: Program, shape: tuple[int, int, int, int], budget: int) -> tuple[Any, int, int]:
    """(plan, device peak, host peak) of a run within `budget` bytes."""
    plan = make_plan(program, shape, torch.float16, budget, 2**62, device_type="meta")
    spill = Spill(META, outside_the_meter)
    context = Context(1, torch.float16, META, spill=spill, attend=lambda q, k, v: torch.empty_like(q))
    x = torch.empty(shape, dtype=torch.float16, device=META)
    with torch.inference_mode(), LiveTensorMeter("meta") as meter:
        run_program(program, plan.schedule, context, x, lambda top, rows: None, turned=plan.turned)
    return plan, meter.peak_bytes, spill.peak_host_bytes


def main(arguments: list[str]) -> None:
    """Print a line per direction and size."""
    streamed.begin = FewSlices
    with META:
        model: Any = build_kl(KLConfig(4, 4, LEVELS, LEVELS)).half().eval()
    programs = {
        "decode": build_program(model.decoder, before=model.post_quant_conv),
        "encode": build_program(model.encoder, after=model.quant_conv),
    }
    for argument in arguments:
        side, budget = int(argument.split(":")[0]), float(argument.split(":")[1])
        for direction, program in programs.items():
            shape = (1, 4, side // 8, side // 8) if direction == "decode" else (1, 3, side, side)
            started = time.perf_counter()
            plan, device, host = metered(program, shape, int(budget * GIB))
            print(
                f"{direction} {side} px, budget {budget} GiB: device {device / GIB:.3f} GiB "
                f"(predicted {plan.peak_bytes / GIB:.3f}), host {host / GIB:.2f} GiB, "
                f"work {plan.work_ratio:.2f} x untiled, {time.perf_counter() - started:.0f} s of walking",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
