"""Clips of the Wan 2.1 and Qwen-Image autoencoder: every frame as the whole clip at once has it, in any memory.

Held to diffusers' class, which runs clips frame by frame and keeps what convolutions saw before.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import pytest
import torch
from exact_vae import load_vae
from exact_vae.benchmarks.meter import LiveTensorMeter
from exact_vae.tests.exact.test_planner_prediction import AMPLE, GIB, META, assert_predicted
from exact_vae.tests.exactness import assert_exact
from exact_vae.tests.families.table import Row, levels, random_model, wan
from exact_vae.tests.families.test_wan import noise
from exact_vae.vae_model.checkpoint.save import to_layout
from exact_vae.vae_model.errors import InputError, MemoryBudgetError
from exact_vae.vae_model.exact.memory.spill import Spill
from exact_vae.vae_model.exact.plan.plan import Plan
from exact_vae.vae_model.exact.plan.search import make_plan
from exact_vae.vae_model.exact.program import Program
from exact_vae.vae_model.exact.schedule import LevelSchedule, Schedule, uniform
from exact_vae.vae_model.exact.stream.context import Context
from exact_vae.vae_model.exact.stream.run import run_program
from exact_vae.vae_model.families.coder import Coder
from exact_vae.vae_model.families.ldm.config import LevelsConfig
from exact_vae.vae_model.families.table import decoder_of, encoder_of
from exact_vae.vae_model.families.wan.config import WanConfig
from exact_vae.vae_model.families.wan.model import WanVAE
from torch import Tensor
from torch.nn import functional

pytestmark = pytest.mark.usefixtures("no_gradients", "one_thread")

Z = 4
ROW = Row("wan", wan(Z, levels(8, 16, 32, 32)), Z, 8)
CLASSES = ("AutoencoderKLWan", "AutoencoderKLQwenImage")
SHAPES = ((1, 3, 4), (2, 5, 3), (3, 1, 6), (5, 4, 3), (9, 2, 2))
"""Frames of latents, rows and columns: 1, 5, 9, 17 and 33 frames; one row; along rows and along columns."""


@cache
def model() -> Any:
    return random_model(ROW).double()


@cache
def theirs(name: str) -> Any:
    """diffusers' model of the same weights, which upsamples in float32 unless it is told not to."""
    diffusers: Any = pytest.importorskip("diffusers")
    other = getattr(diffusers, name)(
        base_dim=8, z_dim=Z, dim_mult=[1, 2, 4, 4], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    other.load_state_dict(to_layout(model(), "diffusers"))
    for layer in other.modules():
        if type(layer).__name__ in ("WanUpsample", "QwenImageUpsample"):
            layer.forward = lambda x: functional.interpolate(x, scale_factor=2, mode="nearest-exact")
    return other.double().eval().requires_grad_(False)


def coders() -> dict[str, Coder]:
    return {"decode": decoder_of(model()), "encode": encoder_of(model(), Z)}


def clip(direction: str, shape: tuple[int, int, int], batch: int = 1) -> Tensor:
    """(B, C, T, h, w), with a slope, motion and an outlier."""
    frames, height, width = shape
    if direction == "encode":
        frames, height, width = 4 * frames - 3, 8 * height, 8 * width
    x = noise(batch, Z if direction == "decode" else 3, frames, height, width, dtype=torch.float64)
    x += torch.linspace(-1, 1, frames, dtype=torch.float64)[:, None, None]
    x[0, 0, -1, 0, -1] = 12.0
    return x


def whole(direction: str, x: Tensor, other: Any) -> Tensor:
    """The whole clip by a model, not clamped."""
    if direction == "encode":
        return other.encode(x).latent_dist.mode() if other is not model() else other.encode(x)
    return other.decode(x).sample if other is not model() else other.decode(x)


def by_engine(coder: Coder, x: Tensor, plan: Plan) -> Tensor:
    """One clip (C, T, H, W) -> (D, F, H', W')."""
    context = Context(1, x.dtype, x.device, spill=Spill(x.device))
    made = run_clip(coder.program, plan.schedule, context, x, plan.turned)
    return coder.finish(made.transpose(0, 1)).transpose(0, 1)


def run_clip(program: Program, schedule: Schedule, context: Context, x: Tensor, turned: bool) -> Tensor:
    """(C, T, H, W) -> (D, F, H', W')."""
    parts: list[Tensor] = []
    run_program(
        program, schedule, context, x.transpose(0, 1), lambda _, strip: parts.append(strip.clone()), turned=turned
    )
    return torch.cat(parts, dim=3 if turned else 2).transpose(0, 1)


def plans(program: Program, x: Tensor, host_bytes: int) -> list[Plan]:
    """From everything that is wanted down to the least that does."""
    frames = x.transpose(0, 1)
    shape: Any = tuple(frames.shape)
    most = make_plan(program, shape, x.dtype, AMPLE).peak_bytes
    with pytest.raises(MemoryBudgetError) as refused:
        make_plan(program, shape, x.dtype, 1, host_bytes)
    least = refused.value.needed_bytes or 0
    budgets = [int(least + share * max(0, most - least)) for share in (1, 0.5, 0.2, 0.05, 0)]
    return [make_plan(program, shape, x.dtype, budget, host_bytes) for budget in budgets]


# -- equal -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize("name", CLASSES)
def test_the_model_equals_diffusers(name: str, direction: str, shape: tuple[int, int, int]) -> None:
    x = clip(direction, shape, batch=2)
    expected = whole(direction, x, theirs(name))
    actual = whole(direction, x, model())
    assert_exact(actual.clamp(-1, 1) if direction == "decode" else actual, expected)


@pytest.mark.parametrize("host_bytes", [0, AMPLE], ids=["device alone", "with host memory"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_the_engine_equals_diffusers_under_every_budget(
    direction: str, shape: tuple[int, int, int], host_bytes: int
) -> None:
    x, coder = clip(direction, shape)[0], coders()[direction]
    expected = whole(direction, x[None], theirs(CLASSES[0]))[0]
    for plan in plans(coder.program, x, host_bytes):
        actual = by_engine(coder, x, plan)
        assert_exact(actual.clamp(-1, 1) if direction == "decode" else actual, expected)
        assert plan.turned == (shape[0] > 1 and x.shape[3] > x.shape[2])


@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_float32_errs_less_than_the_contract(direction: str) -> None:
    x = clip(direction, (3, 5, 4))
    truth = whole(direction, x, model())[0]
    narrow = random_model(ROW)
    coder = decoder_of(narrow) if direction == "decode" else encoder_of(narrow, Z)
    for plan in plans(coder.program, x[0].float(), AMPLE):
        actual = by_engine(coder, x[0].float(), plan)
        assert_exact(actual, truth.float(), truth)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_sixteen_bits_err_no_more_than_untiled(direction: str, dtype: torch.dtype) -> None:
    x = clip(direction, (3, 6, 5)).to(dtype)
    narrow = random_model(ROW).to(dtype)
    coder = decoder_of(narrow) if direction == "decode" else encoder_of(narrow, Z)
    untiled = narrow.decode(x)[0] if direction == "decode" else narrow.encode(x)[0]
    wide = random_model(ROW).to(dtype).double()
    truth = (wide.decode(x.double()) if direction == "decode" else wide.encode(x.double()))[0]
    for plan in plans(coder.program, x[0], 0)[::2]:
        assert_exact(by_engine(coder, x[0], plan), untiled, truth)


def test_frames_see_no_later_ones() -> None:
    """What a decode of the first latents gives is what it gives with others behind them."""
    x, coder = clip("decode", (4, 3, 2))[0], coders()["decode"]
    few = x[:, :2]
    whole_clip, prefix = (by_engine(coder, part, plans(coder.program, part, 0)[0]) for part in (x, few))
    assert_exact(whole_clip[:, :5], prefix)
    other = x.clone()
    other[:, 0] += 1
    assert not torch.equal(by_engine(coder, other, plans(coder.program, x, 0)[0])[:, 5:], whole_clip[:, 5:])


# -- users' doors ------------------------------------------------------------------------------------------------------


@pytest.fixture
def vae() -> Any:
    return load_vae(to_layout(random_model(ROW), "wan"), device="cpu", dtype="float32")


@pytest.mark.parametrize("method", ["exact", "untiled"])
def test_a_vae_takes_and_gives_clips(vae: Any, method: str) -> None:
    pixels = torch.rand(2, 9, 27, 18, 3, generator=torch.Generator().manual_seed(2))
    narrow = random_model(ROW)
    expected = narrow.encode(pixels[:, :, 1:25, 1:17].permute(0, 4, 1, 2, 3) * 2 - 1)
    latents = vae.encode(pixels, method)
    assert latents.shape == (2, Z, 3, 3, 2)
    assert_exact(latents, expected)
    images = vae.decode(latents, method)
    assert images.shape == (2, 9, 24, 16, 3)
    assert_exact(images, ((narrow.decode(latents) + 1) / 2).clamp(0, 1).permute(0, 2, 3, 4, 1))
    assert torch.equal(vae.decode(latents[:1], method), images[:1])
    assert vae.last_report.method == method


def test_tiles_of_clips_are_of_their_shape(vae: Any) -> None:
    z = torch.randn(1, Z, 3, 20, 18, generator=torch.Generator().manual_seed(2))
    tiled = vae.decode(z, "blend", tile_size=96, overlap=32)
    assert tiled.shape == (1, 9, 160, 144, 3)
    assert not torch.equal(tiled, vae.decode(z))  # it is approximate


def test_a_batch_is_a_clip_where_the_user_says_so(vae: Any) -> None:
    pixels = torch.rand(5, 16, 24, 3, generator=torch.Generator().manual_seed(3))
    assert vae.encode(pixels).shape == (5, Z, 1, 2, 3)
    as_clip = vae.encode(pixels, not_video=False)
    assert torch.equal(as_clip, vae.encode(pixels[None]))
    assert as_clip.shape == (1, Z, 2, 2, 3)
    assert vae.encode(pixels[:1], not_video=False).shape == (1, Z, 1, 2, 3)


@pytest.mark.parametrize(("frames", "used", "left"), [(2, 1, "the last one is"), (8, 5, "the last 3 are")])
def test_frames_too_many_are_left_out_with_a_word(
    vae: Any, frames: int, used: int, left: str, caplog: pytest.LogCaptureFixture
) -> None:
    pixels = torch.rand(1, frames, 16, 16, 3, generator=torch.Generator().manual_seed(4))
    with caplog.at_level(logging.INFO, logger="exact_vae.vae_model.notes"):
        latents = vae.encode(pixels)
    assert f"expected 1 + 4 * n frames, got {frames}: {left} left out" in caplog.text
    assert torch.equal(latents, vae.encode(pixels[:, :used]))


def test_a_vae_of_pictures_refuses_clips(small_vae: Any) -> None:
    for what, call in {
        "latents": lambda: small_vae.decode(torch.zeros(1, small_vae.latent_channels, 21, 4, 4)),
        "pixels": lambda: small_vae.encode(torch.zeros(1, 21, 32, 32, 3)),
    }.items():
        with pytest.raises(InputError, match=rf"^{what}: expected a single frame, got a video of 21 frames: this VAE"):
            call()


# -- memory ------------------------------------------------------------------------------------------------------------


@cache
def full_width() -> dict[str, Program]:
    half = LevelsConfig(96, (96, 192, 384, 384), 2)
    with META:
        large: Any = WanVAE(WanConfig(16, half, half, (False, True, True))).half().eval()
    return {"decode": decoder_of(large).program, "encode": encoder_of(large, 16).program}


CASES = [
    ("decode", (3, 16, 16, 16)),
    ("decode", (2, 16, 12, 20)),
    ("decode", (5, 16, 14, 9)),
    ("encode", (9, 3, 96, 128)),
]


@pytest.mark.parametrize(("direction", "shape"), CASES, ids=str)
@pytest.mark.parametrize("host_bytes", [0, AMPLE], ids=["device alone", "with host memory"])
def test_the_plan_is_what_the_meter_sees(direction: str, shape: Any, host_bytes: int) -> None:
    program = full_width()[direction]
    most = make_plan(program, shape, torch.float16, AMPLE, device_type="meta").peak_bytes
    with pytest.raises(MemoryBudgetError) as refused:
        make_plan(program, shape, torch.float16, 1, host_bytes, device_type="meta")
    least = refused.value.needed_bytes or 0
    for share in (1, 0.5, 0.2, 0):
        budget = int(least + share * max(0, most - least))
        plan = make_plan(program, shape, torch.float16, budget, host_bytes, device_type="meta")
        assert plan.work_ratio <= 1.01  # nothing is computed twice, whatever is stored
        assert_predicted(program, plan, shape)


@pytest.mark.parametrize(
    ("shape", "host_bytes", "limit"),
    [
        ((31, 16, 270, 480), 0, 6),  # 121 frames of 3840 x 2160
        ((31, 16, 270, 480), AMPLE, 3),
        ((31, 16, 480, 270), AMPLE, 3),
        ((21, 16, 90, 160), 0, 1.2),  # 81 frames of 1280 x 720
    ],
)
def test_long_clips_of_large_frames_are_planned_small(shape: Any, host_bytes: int, limit: float) -> None:
    budget = int(limit * GIB)
    plan = make_plan(full_width()["decode"], shape, torch.float16, budget, host_bytes, device_type="cuda")
    assert plan.peak_bytes <= budget
    assert plan.work_ratio <= 1.1
    assert plan.moved_bytes < 2**35  # a plane of latents that waits, and no plane of images


@pytest.mark.parametrize("ends", [False, True])
def test_what_all_ranks_store_is_planned_whatever_else_would_do(ends: bool) -> None:
    """Ranks agree on what every level stores; one of them may have memory for more."""
    program, shape = coders()["decode"].program, (3, Z, 6, 5)

    def allow(level: int, schedule: LevelSchedule) -> bool:
        return not schedule.store_blocks and schedule.store_ends == ends

    plan = make_plan(program, shape, torch.float64, AMPLE, allow=allow)
    assert all(allow(level, schedule) for level, schedule in enumerate(plan.schedule))
    with pytest.raises(MemoryBudgetError):
        make_plan(program, shape, torch.float64, 1, allow=allow)


def test_a_tenth_of_the_untiled_peak_is_enough() -> None:
    narrow = random_model(ROW)
    z = torch.randn(1, Z, 3, 40, 24, generator=torch.Generator().manual_seed(5))
    with LiveTensorMeter() as meter:
        untiled = narrow.decode(z)[0]
    program = decoder_of(narrow).program
    plan = make_plan(program, (3, Z, 40, 24), torch.float32, meter.peak_bytes // 10)
    with LiveTensorMeter() as mine:
        context = Context(1, z.dtype, z.device)
        out = torch.empty(9, 3, 320, 192)

        def emit(top: int, rows: Tensor) -> None:
            out[:, :, top : top + rows.shape[2]] = rows

        run_program(program, plan.schedule, context, z[0].transpose(0, 1), emit)
    assert not plan.turned
    assert mine.peak_bytes - out.nbytes <= meter.peak_bytes // 10
    assert_exact(out.transpose(0, 1), untiled)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("turned", [False, True])
def test_every_way_of_storing(turned: bool, channels_last: bool) -> None:
    """Strips with channels outermost, too, as some devices like it better; and what waits in host memory."""
    x, program = clip("decode", (3, 3, 4))[0], coders()["decode"].program
    expected = whole("decode", x[None], model())[0]
    stores = {"store_blocks": False, "store_hidden": False, "store_enlarged": False, "store_ends": False}
    ways: list[dict[str, Any]] = [{}, {"device_share": 0.4}, {"device_share": 0.0}]
    for options in (*ways, *({**stores, **way} for way in ways)):
        for rows in (1, 3):
            schedule = uniform(program.level_count, rows, **options)
            context = Context(1, x.dtype, x.device, channels_last, spill=Spill(x.device))
            assert_exact(run_clip(program, schedule, context, x, turned), expected)
