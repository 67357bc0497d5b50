"""`VAE.decode_frames`: the frames of the whole clip, early, in memory that no number of frames changes."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import pytest
import torch
from exact_vae import load_vae
from exact_vae.benchmarks.meter import LiveTensorMeter
from exact_vae.model_management import LocalHost
from exact_vae.tests.exact.test_planner_prediction import AMPLE, META, assert_predicted
from exact_vae.tests.exactness import assert_exact
from exact_vae.tests.families.table import random_model
from exact_vae.tests.families.test_wan_clips import ROW, SHAPES, Z, clip, full_width, theirs, whole
from exact_vae.tests.injector import AllocationFailures
from exact_vae.vae_model.checkpoint.save import to_layout
from exact_vae.vae_model.errors import InputError, MemoryBudgetError
from exact_vae.vae_model.exact.memory.spill import Spill
from exact_vae.vae_model.exact.plan.plan import Plan
from exact_vae.vae_model.exact.plan.search import make_plan
from exact_vae.vae_model.exact.stream.context import Context
from exact_vae.vae_model.exact.stream.past import Past
from exact_vae.vae_model.exact.stream.run import run_program
from exact_vae.vae_model.families.coder import Coder
from exact_vae.vae_model.families.table import decoder_of
from exact_vae.vae_model.runs.frames import FramesRun
from torch import Tensor

pytestmark = pytest.mark.usefixtures("no_gradients", "one_thread")


def latents(frames: int, height: int = 4, width: int = 3, batch: int = 1) -> Tensor:
    x = torch.randn(batch, Z, frames, height, width, generator=torch.Generator().manual_seed(frames))
    return x + torch.linspace(-1, 1, frames)[:, None, None]


@pytest.fixture
def vae() -> Any:
    return load_vae(to_layout(random_model(ROW), "wan"), device="cpu", dtype="float32")


# -- the engine, part by part ------------------------------------------------------------------------------------------


@cache
def coder_in(dtype: torch.dtype) -> Coder:
    return decoder_of(random_model(ROW).to(dtype))


@cache
def plan_of(later: bool, shape: Any, dtype: torch.dtype, least: bool, host_bytes: int) -> Plan:
    """The best plan of a part (T, C, H, W), or that of the least memory."""
    program: Any = coder_in(dtype).program
    program = program.continued if later else program
    if not least:
        return make_plan(program, shape, dtype, AMPLE, host_bytes)
    with pytest.raises(MemoryBudgetError) as refused:
        make_plan(program, shape, dtype, 1, host_bytes)
    return make_plan(program, shape, dtype, refused.value.needed_bytes or 0, host_bytes)


def by_parts(x: Tensor, counts: list[int], least: bool = False, host_bytes: int = 0) -> tuple[Tensor, Past]:
    """One clip (C, T, H, W) -> (D, F, H', W'), in parts of so many frames of latents."""
    past, made, start, program = Past(x.dtype, x.device), list[Tensor](), 0, coder_in(x.dtype).program
    for count in counts:
        part = x[:, start : start + count].transpose(0, 1)
        plan = plan_of(start > 0, tuple(part.shape), x.dtype, least, host_bytes)
        past.continues, past.turned = start > 0, plan.turned
        context, one = Context(1, x.dtype, x.device, spill=Spill(x.device), past=past), program
        if start:
            assert program.continued is not None
            one = program.continued
        strips: list[Tensor] = []
        give = partial(_give, strips)
        run_program(one, plan.schedule, context, part, give, turned=plan.turned)
        made.append(torch.cat(strips, dim=3 if plan.turned else 2))
        start += count
    return torch.cat(made).transpose(0, 1), past


def _give(strips: list[Tensor], _: int, strip: Tensor) -> None:
    strips.append(strip.clone())


def cuts(frames: int) -> list[list[int]]:
    """One frame of latents at a time, several, the first one alone, the last one alone."""
    return [[1] * frames, [2] * (frames // 2) + [1] * (frames % 2), [1, frames - 1], [frames - 1, 1]]


@pytest.mark.parametrize(
    ("shape", "least", "host_bytes"),
    [
        *((shape, False, 0) for shape in SHAPES if shape[0] > 1),
        ((3, 1, 6), True, 0),
        ((2, 5, 3), True, AMPLE),
    ],
)
def test_parts_equal_the_whole_clip_by_diffusers(shape: tuple[int, int, int], least: bool, host_bytes: int) -> None:
    x, program = clip("decode", shape)[0], coder_in(torch.float64).program
    expected = whole("decode", x[None], theirs("AutoencoderKLWan"))[0]
    for counts in cuts(shape[0]):
        actual, past = by_parts(x, counts, least, host_bytes)
        assert_exact(actual.clamp(-1, 1), expected)
        assert past.nbytes == program.past_bytes(*shape[1:], x.dtype.itemsize)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(5, 6, 5), (5, 5, 6)], ids=str)
def test_parts_err_no_more_than_the_contract(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x = clip("decode", shape).to(dtype)
    narrow = random_model(ROW).to(dtype)
    truth, untiled = random_model(ROW).to(dtype).double().decode(x.double())[0], narrow.decode(x)[0]
    for counts in cuts(5):
        actual, _ = by_parts(x[0], counts)
        assert_exact(actual, untiled, truth)


def test_a_program_without_frames_has_no_parts() -> None:
    small: Any = load_vae("bundled", device="cpu", dtype="float32")
    assert decoder_of(small.first_stage_model).program.continued is None


@pytest.mark.parametrize("shape", [(3, 16, 11, 7), (1, 16, 7, 11)], ids=str)
def test_the_plan_of_a_part_is_what_the_meter_sees(shape: Any) -> None:
    assert_part_predicted(full_width()["decode"].continued, shape)


def assert_part_predicted(program: Any, shape: Any) -> None:
    """A later part of a clip, with all that is wanted and with the least that does."""
    most = make_plan(program, shape, torch.float16, AMPLE, device_type="meta").peak_bytes
    with pytest.raises(MemoryBudgetError) as refused:
        make_plan(program, shape, torch.float16, 1, device_type="meta")
    least = refused.value.needed_bytes or 0
    for share in (1, 0):
        plan = make_plan(program, shape, torch.float16, int(least + share * max(0, most - least)), device_type="meta")
        past = Past(torch.float16, META)
        past.continues, past.turned = True, plan.turned
        assert_predicted(program, plan, shape, past)


# -- the door ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(4, 3), (3, 5)])
@pytest.mark.parametrize("frames", [1, 2, 4, 5, 9, 10])
def test_frames_are_those_of_the_whole_clip(vae: Any, frames: int, size: tuple[int, int]) -> None:
    z = latents(frames, *size)
    expected = vae.decode(z)[0]
    groups = list(vae.decode_frames(z))
    assert_exact(torch.cat(groups), expected)
    assert all(group.dtype == torch.float32 and group.shape[1:] == expected.shape[1:] for group in groups)
    assert [len(group) for group in groups] == {
        1: [1], 2: [5], 4: [13], 5: [13, 4], 9: [13, 16, 4], 10: [13, 16, 8]
    }[frames]  # fmt: skip
    assert not groups[0].requires_grad
    assert not groups[0].is_inference()


def test_the_first_frames_come_early(vae: Any) -> None:
    told: list[float] = []
    frames = vae.decode_frames(latents(12), progress=told.append)
    next(frames)
    assert told[-1] < 0.4
    assert vae.last_report.stopped is None
    rest = list(frames)
    assert len(rest) == 2
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_clips_of_a_batch_follow_each_other(vae: Any) -> None:
    z = latents(6, batch=2)
    assert_exact(torch.cat(list(vae.decode_frames(z))), vae.decode(z).flatten(0, 1))


def test_memory_does_not_grow_with_the_frames(vae: Any) -> None:
    peaks = []
    for frames in (9, 29):
        z, size = latents(frames, 12, 8), 0
        with LiveTensorMeter() as meter:
            for group in vae.decode_frames(z):
                size = group.nbytes
                del group
        peaks.append(meter.peak_bytes)
        plan = vae.last_plan
        assert 1.0 <= plan.peak_bytes / (meter.peak_bytes - size * 4) <= 1.15  # the last group is of one frame of four
        assert plan.past_bytes == decoder_of(vae.first_stage_model).program.past_bytes(12, 8, 4)
    assert peaks[1] <= 1.001 * peaks[0]


@pytest.mark.parametrize("share", [0.9, 0.5])
def test_a_budget_holds(vae: Any, share: float) -> None:
    z = latents(9, 8, 12)
    expected, frames = vae.decode(z)[0], vae.decode_frames(z)
    next(frames)
    budget = int(share * vae.last_plan.peak_bytes)
    frames.close()
    with LiveTensorMeter() as meter:
        groups = 0
        made = []
        for group in vae.decode_frames(z, memory=budget):
            groups += group.nbytes
            made.append(group)
            del group
    assert_exact(torch.cat(made), expected)
    plan = vae.last_plan
    assert plan.peak_bytes <= budget
    assert meter.peak_bytes - groups <= plan.peak_bytes


def least_memory(vae: Any, z: Tensor) -> int:
    """That the whole clip takes."""
    with pytest.raises(MemoryBudgetError) as refused:
        vae.decode(z, memory=1)
    return refused.value.needed_bytes or 0


def test_what_does_not_fit_part_by_part_runs_whole(vae: Any) -> None:
    """The frames then wait in main memory in the run's dtype, and the plan counts them."""
    z = latents(5, 12, 8)
    least = least_memory(vae, z)
    groups = list(vae.decode_frames(z, memory=least))
    assert_exact(torch.cat(groups), vae.decode(z)[0])
    assert [len(group) for group in groups] == [16, 1]
    vae.memory_limit = least
    next(vae.decode_frames(z))
    assert vae.last_plan.past_bytes == 0
    assert vae.last_plan.host_bytes == 17 * 64 * 96 * 3 * 4
    with pytest.raises(MemoryBudgetError, match=r"^64 x 96, 17 frames: expected a budget of at least"):
        next(vae.decode_frames(z, memory=1000))


def test_what_waits_has_the_dtype_of_the_run() -> None:
    vae: Any = load_vae(to_layout(random_model(ROW), "wan"), device="cpu", dtype="bfloat16")
    z = latents(5, 12, 8)
    least = least_memory(vae, z)
    expected = vae.decode(z, memory=least)[0]
    assert torch.equal(torch.cat(list(vae.decode_frames(z, memory=least))), expected)
    assert vae.last_plan.host_bytes == 17 * 64 * 96 * 3 * 2


# -- stopped -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_collection() -> Iterator[None]:
    """What must be freed is freed without the garbage collector."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("how", ["closed", "dropped"])
@pytest.mark.usefixtures("no_collection")
def test_nothing_stays_of_an_iterator_that_is_given_up(vae: Any, how: str) -> None:
    z = latents(12)
    list(vae.decode_frames(z))
    with LiveTensorMeter() as meter:
        frames = vae.decode_frames(z)
        next(frames)
        held = meter.current_bytes
        if how == "closed":
            frames.close()
        else:
            del frames
    assert held >= vae.last_plan.past_bytes > 0
    assert meter.current_bytes == 0
    assert vae.last_report.stopped == "closed early"


class Cancelled(Exception):
    pass


@pytest.mark.usefixtures("no_collection")
def test_a_cancelled_run_says_so_and_frees_everything(vae: Any) -> None:
    wanted = True

    def check() -> None:
        if not wanted:
            raise Cancelled("stopped by the user")

    vae._host = LocalHost(check)
    with LiveTensorMeter() as meter:
        frames = vae.decode_frames(latents(12))
        assert len(next(frames)) == 13
        wanted = False
        with pytest.raises(Cancelled):
            next(frames)
    assert meter.current_bytes == 0
    assert vae.last_report.stopped == "stopped by the user"


def test_where_memory_runs_out_on_the_way_the_clip_begins_again(vae: Any) -> None:
    """What was given is not given again."""
    z = latents(12, 6, 6)
    expected = vae.decode(z)[0]
    with AllocationFailures() as counted:
        list(vae.decode_frames(z))
    for number in range(40, counted.count, counted.count // 3):
        frames, groups = vae.decode_frames(z), list[Tensor]()
        with AllocationFailures(fail_at=number) as failures:
            groups += frames
        assert failures.failed == 1
        assert_exact(torch.cat(groups), expected)
    frames = vae.decode_frames(z)
    with AllocationFailures(fail_at=40, once=False), pytest.raises(MemoryBudgetError, match="ran out"):
        list(frames)


def test_what_overflows_in_float16_is_repeated_in_float32() -> None:
    model = random_model(ROW)
    weight = model.decoder.conv1.weight
    weight.data.mul_(30_000 / float(weight.abs().max()))
    vae: Any = load_vae(to_layout(model, "wan"), device="cpu", dtype="float16")
    z = latents(6) * 4
    expected = vae.decode(z)[0]
    assert vae.last_report.repeated_in == "float32"
    made = torch.cat(list(vae.decode_frames(z)))
    assert vae.last_report.repeated_in == "float32"
    assert_exact(made, expected)


def test_seconds_are_the_run_s_alone(vae: Any) -> None:
    frames = vae.decode_frames(latents(9))
    next(frames)
    time.sleep(1.5)
    list(frames)
    assert vae.last_report.seconds < 1.5


# -- other models ------------------------------------------------------------------------------------------------------


def test_pictures_come_one_by_one(small_vae: Any) -> None:
    z = torch.randn(3, small_vae.latent_channels, 4, 5, generator=torch.Generator().manual_seed(1))
    groups = list(small_vae.decode_frames(z))
    assert [group.shape for group in groups] == [(1, 32, 40, 3)] * 3
    assert torch.equal(torch.cat(groups), small_vae.decode(z))


def _no_change(*_: object) -> None:
    """A hook."""


def test_a_model_without_rules_runs_untiled(vae: Any) -> None:
    z = latents(6)
    expected = vae.decode(z, "untiled")[0]
    handle = vae.first_stage_model.decoder.conv1.register_forward_hook(_no_change)
    made = torch.cat(list(vae.decode_frames(z)))
    handle.remove()
    assert_exact(made, expected)
    assert vae.last_report.method == "untiled"


def test_wrong_inputs_are_told_at_once(vae: Any, small_vae: Any) -> None:
    for call in (
        lambda: vae.decode_frames(torch.zeros(1, 3, 2, 4, 4)),
        lambda: vae.decode_frames(None),
        lambda: vae.decode_frames(latents(2), progress=3),
        lambda: vae.decode_frames(latents(2), memory="much"),
        lambda: small_vae.decode_frames(torch.zeros(1, 4, 2, 4, 4)),
    ):
        with pytest.raises(InputError):
            call()


def test_the_largest_part_is_of_four_frames() -> None:
    assert FramesRun.at_once == 4
