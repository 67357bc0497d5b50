"""How long planning takes, import not counted: `python benchmarks/planning.py` prints a row per size and budget.

The KL-f8 autoencoder's decoder at full width. Ample: everything fits. Medium: half of what a run with everything on the
device takes. Tight: the least that does without host memory, and where there is any, 0.7 of it.
"""

from __future__ import annotations

import statistics
import time

import torch
from case import CONFIG
from exact_vae.vae_model.errors import MemoryBudgetError
from exact_vae.vae_model.exact.plan.plan import Plan
from exact_vae.vae_model.exact.plan.search import make_plan
from exact_vae.vae_model.exact.program import Program
from exact_vae.vae_model.families.ldm.autoencoder import build_kl
from exact_vae.vae_model.families.ldm.program import build_program

PIXELS = (1024, 4096, 16384)
KINDS = (("cpu", torch.float32, 0), ("cuda", torch.float16, 2**50))
"""Device, dtype and bytes of host memory."""
AMPLE = 2**62
REPEATS = 5


def decoder() -> Program:
    """Sizes alone: there is no weight behind it."""
    with torch.device("meta"):
        model = build_kl(CONFIG).eval()
    return build_program(model.decoder, before=model.post_quant_conv)


def plan(program: Program, pixels: int, kind: tuple[str, torch.dtype, int], budget: int) -> Plan:
    """The plan for a square image."""
    device_type, dtype, host = kind
    return make_plan(program, (1, 4, pixels // 8, pixels // 8), dtype, budget, host, device_type=device_type)


def budgets(program: Program, pixels: int, kind: tuple[str, torch.dtype, int]) -> dict[str, int]:
    """Budgets by name."""
    most = plan(program, pixels, kind, AMPLE).peak_bytes
    least = 0
    try:
        plan(program, pixels, (*kind[:2], 0), 1)
    except MemoryBudgetError as error:
        least = error.needed_bytes or 0
    return {"ample": AMPLE, "medium": most // 2, "tight": int(0.7 * least) if kind[2] else least}


def main() -> None:
    """Least and median milliseconds of every case, after a plan of another size. CPU time: planning has one thread."""
    program = decoder()
    for kind in KINDS:
        plan(program, 512, kind, AMPLE)
        for pixels in PIXELS:
            for name, budget in budgets(program, pixels, kind).items():
                seconds: list[float] = []
                for _ in range(REPEATS):
                    started = time.process_time()
                    found = plan(program, pixels, kind, budget)
                    seconds.append(time.process_time() - started)
                least, middle = 1000 * min(seconds), 1000 * statistics.median(seconds)
                print(f"{kind[0]:5} {pixels:6} px  {name:6}  {least:6.1f} {middle:6.1f} ms  {found.name}")


if __name__ == "__main__":
    main()
