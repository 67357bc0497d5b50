"""Plans: what is chosen in which order, what is refused, and what they say. Full-width KL-f8, sizes only."""

import json
import os
import subprocess
import sys
import weakref
from functools import cache
from typing import Any

import pytest
import torch
from exact_vae.vae_model.errors import MemoryBudgetError
from exact_vae.vae_model.exact.extent import Extent
from exact_vae.vae_model.exact.plan.plan import Plan
from exact_vae.vae_model.exact.plan.search import make_plan
from exact_vae.vae_model.exact.program import Program
from exact_vae.vae_model.exact.schedule import LevelSchedule, uniform
from exact_vae.vae_model.exact.stream.context import Context
from exact_vae.vae_model.exact.stream.plane import Plane
from exact_vae.vae_model.exact.stream.source import PlaneSource
from exact_vae.vae_model.families.ldm.autoencoder import build_kl
from exact_vae.vae_model.families.ldm.config import KLConfig, LevelsConfig
from exact_vae.vae_model.families.ldm.program import build_program
from exact_vae.vae_model.kernels.cpu import kernels as tiles
from exact_vae.vae_model.kernels.cpu.kernels import kernels
from exact_vae.vae_model.kernels.methods import this_machine

GIB = 1024**3
AMPLE = 2**62
FULL_HD_4 = (1, 4, 270, 480)
"""The latent of 3840 x 2160 pixels."""


@cache
def decoder() -> Program:
    levels = LevelsConfig(ch=128, widths=(128, 256, 512, 512), num_res_blocks=2)
    with torch.device("meta"):
        model: Any = build_kl(KLConfig(4, 4, levels, levels)).eval()
    return build_program(model.decoder, before=model.post_quant_conv)


def plan(budget: float, host: float = 0, shape: tuple[int, int, int, int] = FULL_HD_4, **options: Any) -> Plan:
    return make_plan(decoder(), shape, torch.float16, int(budget * GIB), int(host * GIB), device_type="cuda", **options)


def test_with_ample_memory_everything_stays_and_nothing_is_computed_twice() -> None:
    found = plan(64)
    assert all(level.schedule.name == "resident" for level in found.levels)
    # Enlargements take 4/9 of their work; everything else is done once, attention included.
    assert 0.8 < found.work_ratio < 0.95
    assert found.moved_bytes == found.host_bytes == 0


def test_the_law_of_the_resident_schedule_is_256_elements_per_pixel() -> None:
    # Two planes of 128 channels, plus strips, which count less the larger the image.
    assert 256 <= plan(AMPLE / GIB, shape=(1, 4, 1024, 1024)).peak_bytes / 2 / 8192**2 <= 260


def test_4k_in_2_2_gib_needs_no_host_memory_and_at_most_1_35_times_the_work() -> None:
    found = plan(2.2)
    assert found.peak_bytes <= 2.2 * GIB
    assert found.moved_bytes == 0
    assert found.work_ratio <= 1.35


def test_4k_in_1_1_gib_spills_and_works_at_most_1_35_times() -> None:
    found = plan(1.1, host=16)
    assert found.peak_bytes <= 1.1 * GIB
    assert 0 < found.host_bytes <= 16 * GIB
    assert found.work_ratio <= 1.35


def test_less_memory_never_means_less_work() -> None:
    work = [plan(budget).work_ratio for budget in (8, 4, 3, 2.2, 1.6)]
    assert work == sorted(work)
    assert work[-1] > work[0]


@pytest.mark.parametrize("kind", ["resident", "recompute"])
def test_a_kind_can_be_asked_for(kind: str) -> None:
    assert plan(64, prefer=kind).levels[-1].schedule.name == kind


def test_spilling_can_be_asked_for() -> None:
    assert plan(64, host=64, prefer="spill").levels[-1].schedule.device_share < 1


def test_strips_of_a_chosen_height_and_lower_ones_where_those_do_not_fit() -> None:
    assert plan(64, strip_rows=64).levels[-1].schedule.strip_rows == 64
    assert plan(64, strip_rows=64).levels[0].schedule.strip_rows == 8
    assert plan(2.2, strip_rows=512).levels[-1].schedule.strip_rows < 512


def test_what_was_rejected_is_told() -> None:
    reasons = [reason for level in plan(2.2).levels for reason in level.rejected]
    assert any(reason.startswith("resident, strips of") and "GiB of 2.20 GiB" in reason for reason in reasons)


def test_a_plan_prints_as_a_table_and_as_json() -> None:
    found = plan(1.1, host=16)
    table = found.table()
    assert "spill" in table
    assert "480 x 270 x 512" in table
    facts = json.loads(found.as_json())
    assert facts["peak_bytes"] == found.peak_bytes
    assert facts["levels"][0]["schedule"]["name"] == "resident"


def test_what_fits_nowhere_names_the_least_that_does() -> None:
    with pytest.raises(MemoryBudgetError, match=r"3840 x 2160: expected a budget .* got 10\.2 MiB") as caught:
        plan(0.01)
    needed = caught.value.needed_bytes
    assert needed is not None
    assert plan(needed / GIB).peak_bytes <= needed


@pytest.mark.parametrize("budget", [0, -5])
def test_budgets_that_are_none(budget: int) -> None:
    with pytest.raises(ValueError, match="expected a budget above 0 bytes"):
        make_plan(decoder(), FULL_HD_4, torch.float16, budget)


@pytest.mark.parametrize("rows", [0, -1])
def test_strips_below_one_row(rows: int) -> None:
    with pytest.raises(ValueError, match="strip height: expected at least 1 row"):
        plan(8, strip_rows=rows)
    with pytest.raises(ValueError, match="strip height: expected at least 1 row"):
        LevelSchedule(rows)


def test_shapes_and_kinds_that_do_not_belong() -> None:
    with pytest.raises(ValueError, match=r"shape: expected \(batch, 4, height, width\)"):
        plan(8, shape=(1, 3, 64, 64))
    with pytest.raises(ValueError, match="prefer: expected one of"):
        plan(8, prefer="magic")
    with pytest.raises(ValueError, match="device share"):
        uniform(4, 8, device_share=1.5)


def test_no_strip_reaches_2_to_the_31_elements() -> None:
    found = plan(AMPLE / GIB, shape=(1, 4, 2048, 2048))
    for level in found.levels:
        assert (level.schedule.strip_rows + 2) * level.width * level.channels < 2**31


def test_planning_asks_nothing_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it depends on is handed in: no process is started, no compiler, no thread count asked."""
    machines = [this_machine("cpu", torch.float32)._replace(threads=threads) for threads in (1, 16)]

    def asked(*arguments: Any, **options: Any) -> None:
        raise AssertionError("planning asked the machine")

    for owner, name in (
        (subprocess, "Popen"), (os, "fork"), (os, "posix_spawn"), (torch, "get_num_threads"), (tiles, "load"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, asked)
    kernels.cache_clear()
    for machine in machines:
        found = make_plan(decoder(), (1, 4, 64, 64), torch.float32, 400 * 2**20, machine=machine)
        assert found.levels[0].schedule.fast_convolution
        assert found.peak_bytes <= 400 * 2**20
    with pytest.raises(AssertionError, match="planning asked the machine"):
        make_plan(decoder(), (1, 4, 64, 64), torch.float32, 400 * 2**20)  # not told, it asks


def test_the_number_of_threads_is_that_of_the_machine_handed_in() -> None:
    machine = this_machine("cpu", torch.float32)
    if machine.tiles is None:
        pytest.skip("no C compiler here, or it was told not to be used")
    peaks = [
        make_plan(decoder(), (1, 4, 64, 64), torch.float32, 2**40, machine=machine._replace(threads=count)).peak_bytes
        for count in (1, 64)
    ]
    assert peaks[0] < peaks[1]


def test_spilling_needs_somewhere_to_spill_to() -> None:
    with pytest.raises(ValueError, match="prefer: expected host memory to spill into, got a host budget of 0"):
        plan(64, prefer="spill")


def test_a_plan_is_counted_in_little_time() -> None:
    """Of a plan with every kind of schedule; calls, as seconds depend on what else the machine does."""
    counted = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal counted
        counted += event == "call"

    sys.setprofile(count)
    try:
        found = plan(1.1, host=16)
    finally:
        sys.setprofile(None)
    assert found.moved_bytes
    assert counted <= 160_000


def test_sources_are_let_go_without_a_garbage_collection() -> None:
    """Those that hold each other would keep their strips until one."""
    context = Context(1, torch.float32, torch.device("cpu"))
    plane = Plane(context, Extent(4, 8, 8), 2)
    rows = weakref.ref(PlaneSource(plane, 0, 8, consume=True))
    assert rows() is None
