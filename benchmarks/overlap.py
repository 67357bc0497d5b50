"""How much of the copying of a spilled decode hides behind its computing."""

from __future__ import annotations

from typing import Any

import measure
import planned
import torch
from case import Case
from torch import Tensor

BLOCK_BYTES = 2**26


def overlap_row(case: Case, repeats: int) -> dict[str, Any]:
    """Seconds of a decode that spills, of the same strips kept on the device, and of its copies alone; taking turns."""
    device = case.models.device
    plan = planned.plan_case(case, prefer="spill")
    program = planned.program_of(case.models.ours, case.direction)
    kept = planned.without_spill(plan.schedule)
    _, spill = planned.run_schedule(case, program, plan.schedule)  # The warm-up tells how much is copied.
    blocks = _blocks(device)
    runs = {
        "spilled": lambda: planned.run_schedule(case, program, plan.schedule),
        "kept": lambda: planned.run_schedule(case, program, kept),
        "copies": lambda: _copy(blocks, spill.bytes_out, spill.bytes_in),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(repeats + 1):
        for name, run in runs.items():
            taken = measure.time_run(run, device)[1]
            seconds[name] += [taken] if number else []
    medians = {name: measure.median(taken) for name, taken in seconds.items()}
    facts = {"size": case.size, "direction": case.direction, "bytes_out": spill.bytes_out, "bytes_in": spill.bytes_in}
    return facts | {"seconds": seconds, "median_seconds": medians, "hidden_share": hidden_share(medians)}


def hidden_share(medians: dict[str, float | None]) -> float | None:
    """The share of the copying time that the spilled run does not show, 0..1."""
    spilled, kept, copies = (medians.get(name) for name in ("spilled", "kept", "copies"))
    if spilled is None or kept is None or not copies:
        return None
    return min(1.0, max(0.0, 1 - (spilled - kept) / copies))


def _blocks(device: torch.device) -> dict[str, tuple[Tensor, Tensor]]:
    """A block on the host and one on the device for each way."""

    def pair() -> tuple[Tensor, Tensor]:
        host = torch.empty(BLOCK_BYTES, dtype=torch.uint8, pin_memory=device.type == "cuda")
        return host, torch.empty(BLOCK_BYTES, dtype=torch.uint8, device=device)

    return {"out": pair(), "in": pair()}


def _copy(blocks: dict[str, tuple[Tensor, Tensor]], bytes_out: int, bytes_in: int) -> None:
    """So many bytes both ways at once, as the engine copies: a stream for each way on a GPU."""
    host_out, device_out = blocks["out"]
    host_in, device_in = blocks["in"]
    ways = ((host_out, device_out, bytes_out), (device_in, host_in, bytes_in))
    if device_out.device.type != "cuda":
        for target, source, size in ways:
            _copy_blocks(target, source, size)
        return
    current = torch.cuda.current_stream(device_out.device)
    streams = [torch.cuda.Stream(device_out.device) for _ in ways]
    for stream in streams:
        stream.wait_stream(current)
    for stream, (target, source, size) in zip(streams, ways, strict=True):
        with torch.cuda.stream(stream):
            _copy_blocks(target, source, size)
    for stream in streams:
        current.wait_stream(stream)


def _copy_blocks(target: Tensor, source: Tensor, size: int) -> None:
    while size > 0:
        part = min(size, BLOCK_BYTES)
        target[:part].copy_(source[:part], non_blocking=True)
        size -= part
