"""`VAE.decode_frames` of Wan 2.2: shortcuts over frames beside the units go part by part, too."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from exact_vae import load_vae
from exact_vae.benchmarks.meter import LiveTensorMeter
from exact_vae.tests.exact.test_planner_prediction import AMPLE
from exact_vae.tests.exactness import assert_exact
from exact_vae.tests.families.test_wan22 import OVER_TIME, Z, model
from exact_vae.tests.families.test_wan22_clips import clamped, clip, coder_of, full_width, of_theirs
from exact_vae.tests.runs.test_frames import assert_part_predicted
from exact_vae.vae_model.checkpoint.save import to_layout
from exact_vae.vae_model.errors import MemoryBudgetError
from exact_vae.vae_model.exact.memory.spill import Spill
from exact_vae.vae_model.exact.plan.search import make_plan
from exact_vae.vae_model.exact.stream.context import Context
from exact_vae.vae_model.exact.stream.past import Past
from exact_vae.vae_model.exact.stream.run import run_program
from torch import Tensor

pytestmark = pytest.mark.usefixtures("no_gradients", "one_thread")


@cache
def vae_of(steps: str) -> Any:
    weights = to_layout(copy.deepcopy(model(steps)).float(), "wan")
    return load_vae(weights, device="cpu", dtype="float32")


def latents(frames: int, height: int = 4, width: int = 3) -> Tensor:
    x = torch.randn(1, Z, frames, height, width, generator=torch.Generator().manual_seed(frames))
    return x + torch.linspace(-1, 1, frames)[:, None, None]


def by_parts(steps: str, x: Tensor, counts: list[int], least: bool) -> tuple[Tensor, Past]:
    """One clip (C, T, h, w) -> (D, F, H, W), in parts of so many frames of latents."""
    past, made, start, first = Past(x.dtype, x.device), list[Tensor](), 0, coder_of("decode", model(steps)).program
    for count in counts:
        part, program = x[:, start : start + count].transpose(0, 1), first.continued if start else first
        assert program is not None
        budget, shape = AMPLE, (count, *x.shape[:1], *x.shape[2:])
        if least:
            with pytest.raises(MemoryBudgetError) as refused:
                make_plan(program, shape, x.dtype, 1)
            budget = refused.value.needed_bytes or 0
        plan, strips = make_plan(program, shape, x.dtype, budget), list[Tensor]()
        past.continues, past.turned = start > 0, plan.turned
        context = Context(1, x.dtype, x.device, spill=Spill(x.device), past=past)
        run_program(
            program, plan.schedule, context, part, lambda _, strip, to=strips: to.append(strip.clone()),
            turned=plan.turned,
        )  # fmt: skip
        made.append(torch.cat(strips, dim=3 if plan.turned else 2))
        start += count
    return torch.cat(made).transpose(0, 1), past


@pytest.mark.parametrize("steps", OVER_TIME)
@pytest.mark.parametrize(("shape", "least"), [((2, 3, 2), False), ((3, 1, 4), True), ((5, 2, 3), False)])
def test_parts_equal_the_whole_clip_by_diffusers(shape: tuple[int, int, int], least: bool, steps: str) -> None:
    x, frames = clip("decode", shape), shape[0]
    expected = of_theirs("decode", x, steps)[0]
    for counts in ([1] * frames, [2] * (frames // 2) + [1] * (frames % 2), [frames - 1, 1]):
        made, past = by_parts(steps, x[0], counts, least)
        program = coder_of("decode", model(steps)).program
        assert_exact(clamped("decode", program_out(steps, made)), expected)
        assert past.nbytes == program.past_bytes(*shape[1:], x.dtype.itemsize)


def program_out(steps: str, made: Tensor) -> Tensor:
    """What is done to the rows behind the program."""
    return coder_of("decode", model(steps)).finish(made.transpose(0, 1)).transpose(0, 1)


@pytest.mark.parametrize("steps", OVER_TIME)
@pytest.mark.parametrize("frames", [1, 2, 3, 5, 9])
def test_frames_are_those_of_the_whole_clip(frames: int, steps: str) -> None:
    """1, 5, 9, 17 and 33; along rows and along columns."""
    vae = vae_of(steps)
    for size in ((4, 3), (2, 5)):
        z = latents(frames, *size)
        groups = list(vae.decode_frames(z))
        assert_exact(torch.cat(groups), vae.decode(z)[0])
        assert [len(group) for group in groups] == {1: [1], 2: [5], 3: [9], 5: [13, 4], 9: [13, 16, 4]}[frames]


def test_memory_does_not_grow_with_the_frames() -> None:
    vae, peaks = vae_of("published"), list[int]()
    for frames in (9, 17):
        z, size = latents(frames, 10, 8), 0
        with LiveTensorMeter() as meter:
            for group in vae.decode_frames(z):
                size = group.nbytes
                del group
        peaks.append(meter.peak_bytes)
        assert 1.0 <= vae.last_plan.peak_bytes / (meter.peak_bytes - 4 * size) <= 1.15
        assert vae.last_plan.past_bytes > 0
    assert peaks[1] <= 1.001 * peaks[0]


@pytest.mark.parametrize("shape", [(3, 48, 11, 7), (1, 48, 7, 11)], ids=str)
def test_the_plan_of_a_part_is_what_the_meter_sees(shape: Any) -> None:
    assert_part_predicted(full_width()["decode"].continued, shape)
