"""Clips of the Wan 2.2 autoencoder: every frame as the whole clip at once has it, in any memory.

Held to diffusers' class, which runs clips frame by frame and keeps what convolutions saw before.
"""

from __future__ import annotations

import copy
import logging
from functools import cache
from typing import Any

import pytest
import torch
from exact_vae import load_vae
from exact_vae.benchmarks.meter import LiveTensorMeter
from exact_vae.tests.exact.test_planner_prediction import AMPLE, GIB, META, assert_predicted
from exact_vae.tests.exactness import assert_exact
from exact_vae.tests.families.table import wan22
from exact_vae.tests.families.test_wan import noise
from exact_vae.tests.families.test_wan22 import OVER_TIME, Z, model, theirs
from exact_vae.tests.families.test_wan_clips import by_engine, plans, run_clip
from exact_vae.vae_model.checkpoint.save import to_layout
from exact_vae.vae_model.errors import MemoryBudgetError
from exact_vae.vae_model.exact.memory.spill import Spill
from exact_vae.vae_model.exact.plan.search import make_plan
from exact_vae.vae_model.exact.program import Program
from exact_vae.vae_model.exact.schedule import uniform
from exact_vae.vae_model.exact.stream.context import Context
from exact_vae.vae_model.exact.stream.run import run_program
from exact_vae.vae_model.families.coder import Coder
from exact_vae.vae_model.families.ldm.config import LevelsConfig
from exact_vae.vae_model.families.table import decoder_of, encoder_of
from exact_vae.vae_model.families.wan22 import Wan22VAE
from torch import Tensor

pytestmark = pytest.mark.usefixtures("no_gradients", "one_thread")

SHAPES = ((1, 3, 4), (2, 3, 2), (3, 1, 4), (5, 2, 3), (9, 2, 1))
"""Frames of latents, rows and columns: 1, 5, 9, 17 and 33 frames; one row; along rows and along columns."""


def coder_of(direction: str, whole: Any) -> Coder:
    return decoder_of(whole) if direction == "decode" else encoder_of(whole, Z)


def clip(direction: str, shape: tuple[int, int, int], batch: int = 1) -> Tensor:
    """(B, C, T, h, w), with a slope, motion and an outlier."""
    frames, height, width = shape
    if direction == "encode":
        frames, height, width = 4 * frames - 3, 16 * height, 16 * width
    x = noise(batch, Z if direction == "decode" else 3, frames, height, width, dtype=torch.float64)
    x += torch.linspace(-1, 1, frames, dtype=torch.float64)[:, None, None]
    x[0, 0, -1, 0, -1] = 12.0
    return x


def of_theirs(direction: str, x: Tensor, steps: str = "published") -> Tensor:
    if direction == "decode":
        return theirs(steps).decode(x).sample
    return theirs(steps).encode(x).latent_dist.mode()


def clamped(direction: str, x: Tensor) -> Tensor:
    """diffusers clamps images."""
    return x.clamp(-1, 1) if direction == "decode" else x


# -- equal -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", OVER_TIME)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_the_model_equals_diffusers(direction: str, shape: tuple[int, int, int], steps: str) -> None:
    x = clip(direction, shape, batch=2)
    assert_exact(clamped(direction, getattr(model(steps), direction)(x)), of_theirs(direction, x, steps))


@pytest.mark.parametrize("frames", [2, 4, 6, 8])
def test_frames_beyond_whole_latents_count_for_nothing(frames: int) -> None:
    """As diffusers has it."""
    x = noise(1, 3, frames, 32, 16, dtype=torch.float64)
    assert_exact(model().encode(x), of_theirs("encode", x))
    assert torch.equal(model().encode(x), model().encode(x[:, :, : 1 + (frames - 1) // 4 * 4]))


@pytest.mark.parametrize(("shape", "host_bytes"), [*((s, 0) for s in SHAPES), *((s, AMPLE) for s in SHAPES[1:3])])
@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_the_engine_equals_diffusers_under_every_budget(
    direction: str, shape: tuple[int, int, int], host_bytes: int
) -> None:
    x, steps = clip(direction, shape)[0], "other steps" if shape[0] in (2, 5) else "published"
    coder, expected = coder_of(direction, model(steps)), of_theirs(direction, x[None], steps)[0]
    for plan in plans(coder.program, x, host_bytes):
        assert_exact(clamped(direction, by_engine(coder, x, plan)), expected)
        assert plan.turned == (shape[0] > 1 and x.shape[3] > x.shape[2])


@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_float32_errs_less_than_the_contract(direction: str) -> None:
    x = clip(direction, (2, 3, 2))
    truth, narrow = getattr(model(), direction)(x)[0], copy.deepcopy(model()).float()
    coder = coder_of(direction, narrow)
    for plan in plans(coder.program, x[0].float(), 0)[::2]:
        assert_exact(by_engine(coder, x[0].float(), plan), truth.float(), truth)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_sixteen_bits_err_no_more_than_untiled(direction: str, dtype: torch.dtype) -> None:
    x, narrow = clip(direction, (2, 4, 3)).to(dtype), copy.deepcopy(model()).to(dtype)
    untiled = getattr(narrow, direction)(x)[0]
    truth = getattr(copy.deepcopy(narrow).double(), direction)(x.double())[0]
    coder = coder_of(direction, narrow)
    for plan in plans(coder.program, x[0], 0)[::2]:
        assert_exact(by_engine(coder, x[0], plan), untiled, truth)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_every_way_of_storing(direction: str, turned: bool) -> None:
    """And both ways along: rows and columns of a picture's squares change places with it."""
    x, coder = clip(direction, (2, 2, 3))[0], coder_of(direction, model("other steps"))
    expected = getattr(model("other steps"), direction)(x[None])[0]
    stores = {"store_blocks": False, "store_hidden": False, "store_enlarged": False, "store_ends": False}
    ways: list[dict[str, Any]] = [{}, {"device_share": 0.4}]
    for options in (*ways, *({**stores, **way} for way in ways)):
        for rows in (1, 3):
            schedule = uniform(coder.program.level_count, rows, **options)
            context = Context(1, x.dtype, x.device, rows == 1, spill=Spill(x.device))
            made = run_clip(coder.program, schedule, context, x, turned)
            assert_exact(coder.finish(made.transpose(0, 1)).transpose(0, 1), expected)


# -- users' doors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["exact", "untiled"])
def test_a_vae_takes_and_gives_clips(method: str, caplog: pytest.LogCaptureFixture) -> None:
    narrow = copy.deepcopy(model()).float()
    vae = load_vae(to_layout(narrow, "wan"), device="cpu", dtype="float32")
    assert (vae.latent_dim, vae.downscale_ratio, vae.upscale_ratio, vae.time_factor) == (3, 16, 16, 4)
    pixels = torch.rand(2, 6, 35, 50, 3, generator=torch.Generator().manual_seed(2))
    with caplog.at_level(logging.INFO, logger="exact_vae.vae_model.notes"):
        latents = vae.encode(pixels, method)
    assert "expected 1 + 4 * n frames, got 6: the last one is left out" in caplog.text
    assert latents.shape == (2, Z, 2, 2, 3)
    assert_exact(latents, narrow.encode(pixels[:, :5, 1:33, 1:49].permute(0, 4, 1, 2, 3) * 2 - 1))
    images = vae.decode(latents, method)
    assert images.shape == (2, 5, 32, 48, 3)
    assert_exact(images, ((narrow.decode(latents) + 1) / 2).clamp(0, 1).permute(0, 2, 3, 4, 1))
    assert vae.last_report.method == method


# -- memory ------------------------------------------------------------------------------------------------------------


@cache
def full_width() -> dict[str, Program]:
    encoder, decoder = (LevelsConfig(n, (n, 2 * n, 4 * n, 4 * n), 2) for n in (160, 256))
    with META:
        large: Any = Wan22VAE(wan22(48, encoder, decoder)).half().eval()
    return {"decode": decoder_of(large).program, "encode": encoder_of(large, 48).program}


def test_it_has_as_many_parameters_as_the_published_one() -> None:
    encoder, decoder = (LevelsConfig(n, (n, 2 * n, 4 * n, 4 * n), 2) for n in (160, 256))
    with META:
        large: Any = Wan22VAE(wan22(48, encoder, decoder))
    assert round(sum(p.numel() for p in large.parameters()) / 1e6, 1) == 704.7


CASES = [
    ("decode", (2, 48, 12, 20), 0),
    ("decode", (1, 48, 20, 14), 0),
    ("decode", (1, 48, 14, 8), AMPLE),
    ("encode", (9, 3, 128, 96), 0),
    ("encode", (5, 3, 96, 128), AMPLE),
]


@pytest.mark.parametrize(("direction", "shape", "host_bytes"), CASES, ids=str)
def test_the_plan_is_what_the_meter_sees(direction: str, shape: Any, host_bytes: int) -> None:
    program = full_width()[direction]
    most = make_plan(program, shape, torch.float16, AMPLE, device_type="meta").peak_bytes
    with pytest.raises(MemoryBudgetError) as refused:
        make_plan(program, shape, torch.float16, 1, host_bytes, device_type="meta")
    least = refused.value.needed_bytes or 0
    for share in (0.3, 0) if host_bytes else (1, 0):
        budget = int(least + share * max(0, most - least))
        plan = make_plan(program, shape, torch.float16, budget, host_bytes, device_type="meta")
        assert plan.work_ratio <= 1.01  # nothing is computed twice, whatever is stored
        assert_predicted(program, plan, shape)


@pytest.mark.parametrize(("height", "width", "limit"), [(44, 80, 4.2), (80, 44, 4.2), (135, 240, 12)])
def test_long_clips_of_large_frames_are_planned_small(height: int, width: int, limit: float) -> None:
    """121 frames of 1280 x 704 and of 3840 x 2160, with nothing that waits in host memory."""
    shape, budget = (31, 48, height, width), int(limit * GIB)
    plan = make_plan(full_width()["decode"], shape, torch.float16, budget, device_type="cuda")
    assert plan.peak_bytes <= budget
    assert plan.work_ratio <= 1.0
    assert plan.turned == (width > height)


def test_a_tenth_of_the_untiled_peak_is_enough() -> None:
    narrow = copy.deepcopy(model()).float()
    z = torch.randn(1, Z, 2, 60, 6, generator=torch.Generator().manual_seed(5))
    with LiveTensorMeter() as meter:
        untiled = narrow.decode(z)[0]
    program = decoder_of(narrow).program
    plan = make_plan(program, (2, Z, 60, 6), torch.float32, meter.peak_bytes // 10)
    with LiveTensorMeter() as mine:
        out = torch.empty(5, 3, 960, 96)

        def emit(top: int, rows: Tensor) -> None:
            out[:, :, top : top + rows.shape[2]] = rows

        run_program(program, plan.schedule, Context(1, z.dtype, z.device), z[0].transpose(0, 1), emit)
    assert not plan.turned
    assert mine.peak_bytes - out.nbytes <= meter.peak_bytes // 10
    assert_exact(out.transpose(0, 1), untiled)
