"""How a clip runs part by part: how many frames at a time, and where waits what convolutions saw of those before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch

from ..errors import MemoryBudgetError
from ..exact.plan.plan import Plan
from ..exact.program import Program
from ..host import ENDLESS, Host

PARTS = (4, 2, 1)
"""Frames of latents of a part, the best first. In float32 every layer makes two frames of a part in vain, or one
convolution of three for each: the more frames, the less of that, but the later they come and the more they take."""
_MAIN = torch.device("cpu")


class Part(NamedTuple):
    """Some frames of latents of a clip."""

    start: int
    latents: int

    @property
    def kind(self) -> tuple[bool, int]:
        """Parts of one kind have one plan."""
        return self.start > 0, self.latents


class Way(NamedTuple):
    """How a clip runs."""

    parts: list[Part]
    """One where it runs whole."""
    plans: dict[tuple[bool, int], Plan]
    """By kind of part."""
    past_device: torch.device
    total: Plan
    """The largest of them, with what stays from part to part, or what waits until the whole clip is done."""


def choose_way(
    host: Host,
    program: Program,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    device: torch.device,
    budget: int | None,
    at_once: int,
) -> Way:
    """The way of the most frames at a time that fits; whole where none does.

    Args:    shape: (T, c, h, w) of the latents. at_once: frames of these at a time at most.
             budget: bytes on the device, None for what is free, ENDLESS for anything.
    Raises:  MemoryBudgetError where the whole clip does not fit either.
    """
    frames, _, height, width = shape
    whole = [Part(0, frames)]
    if frames > 1 and program.continued is not None and frames > at_once:
        limits = (ENDLESS, 0) if budget == ENDLESS else host.budgets(device, budget)
        kept = program.past_bytes(height, width, dtype.itemsize)
        for past_device in dict.fromkeys((device, _MAIN)):
            here = past_device == device
            room, waiting = (limits[0] - kept, limits[1]) if here else (limits[0], limits[1] - kept)
            if room < 1 or waiting < 0:
                continue
            for parts in _cuts(frames, at_once):
                plans = _plans(host, program, shape, dtype, device, ENDLESS if budget == ENDLESS else room, parts)
                if plans is None or max(plan.host_bytes for plan in plans.values()) > waiting:
                    continue
                work, untiled_work = sum(plans[part.kind].work for part in parts), program.flops(shape)
                total = replace(max(plans.values(), key=lambda plan: plan.peak_bytes), untiled_work=untiled_work)
                more = (kept, 0) if here else (0, kept)
                return Way(parts, plans, past_device, _with(total, work, *more, limits))
    plan = host.make_plan(program, shape, dtype, device, budget)
    return Way(whole, {whole[0].kind: plan}, device, plan)


def _cuts(frames: int, at_once: int) -> Iterator[list[Part]]:
    """Into parts of as many frames as may be at a time."""
    for count in dict.fromkeys(min(count, at_once) for count in PARTS):
        yield [Part(start, min(count, frames - start)) for start in range(0, frames, count)]


def _plans(
    host: Host,
    program: Program,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    device: torch.device,
    budget: int,
    parts: list[Part],
) -> dict[tuple[bool, int], Plan] | None:
    """A plan for every kind of part; None where one does not fit."""
    plans: dict[tuple[bool, int], Plan] = {}
    for kind in sorted({part.kind for part in parts}, key=lambda kind: -kind[1]):  # the largest is refused first
        one = program.continued if kind[0] else program
        assert one is not None
        try:
            plans[kind] = host.make_plan(one, (kind[1], *shape[1:]), dtype, device, budget)
        except MemoryBudgetError:
            return None
    return plans


def _with(plan: Plan, work: int, device_bytes: int, host_bytes: int, limits: tuple[int, int]) -> Plan:
    """A plan that takes so much more, and does so much in all."""
    peak_bytes, waiting = plan.need.peak_bytes + device_bytes, plan.need.host_bytes + host_bytes
    need = replace(plan.need, peak_bytes=peak_bytes, host_bytes=waiting, work=work)
    past = device_bytes + host_bytes
    return replace(plan, need=need, device_budget=limits[0], host_budget=limits[1], past_bytes=past)
