"""DC-AE: equal to diffusers', and in strips equal to untiled, under any budget."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from exact_vae.benchmarks.meter import LiveTensorMeter
from exact_vae.tests.covering import covering_set
from exact_vae.tests.exact.test_planner_prediction import AMPLE, META, assert_predicted
from exact_vae.tests.exact.test_programs_whole import run
from exact_vae.tests.exactness import TOLERANCE, assert_exact
from exact_vae.tests.families.dc_ae import CASES, narrow, noise, theirs
from exact_vae.tests.families.table import Row, dc_ae, random_model
from exact_vae.vae_model.checkpoint.load import load_model
from exact_vae.vae_model.errors import MemoryBudgetError
from exact_vae.vae_model.exact.layer import UnsupportedModule
from exact_vae.vae_model.exact.plan.search import make_plan
from exact_vae.vae_model.exact.schedule import uniform
from exact_vae.vae_model.families.dc_ae.config import DCConfig, DCLevels, Stage
from exact_vae.vae_model.families.dc_ae.model import DCAutoencoder
from exact_vae.vae_model.families.table import decoder_of, encoder_of
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

pytestmark = pytest.mark.usefixtures("no_gradients", "one_thread")


class InFloat64(TorchFunctionMode):
    """While it is active, what diffusers converts to float32 within a float64 model stays float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        if func is torch.Tensor.to:
            args = tuple(torch.float64 if one is torch.float32 else one for one in args)
            named = {name: torch.float64 if one is torch.float32 else one for name, one in named.items()}
        return func(*args, **named)


def truth_of(model: Any, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    double = copy.deepcopy(model).double()
    with InFloat64():
        return double.encode(x.double()).latent, double.decode(z.double()).sample


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES)
def test_equals_diffusers(case: str, dtype: torch.dtype) -> None:
    vae = theirs(**CASES[case]).to(dtype)
    loaded = load_model(vae.state_dict(), config=vae.config)
    assert (loaded.family, loaded.layouts) == ("dc_ae", ("diffusers",))
    ours: Any = loaded.model
    channels = vae.config["in_channels"]
    x, z = noise(2, channels, 5 * 8, 3 * 8, dtype=dtype), noise(2, 8, 5, 3, dtype=dtype)
    latent, image = truth_of(vae, x, z)
    for method, given, expected in (("encode", x, latent), ("decode", z, image)):
        assert expected.std() > 0.1  # A comparison of zeros would show nothing.
        assert_exact(getattr(ours, method)(given), expected.to(dtype), expected)
    decoder, encoder = decoder_of(ours).program, encoder_of(ours, 8).program
    assert_exact(run(decoder, uniform(decoder.level_count, 3), z), image.to(dtype), image)
    assert_exact(run(encoder, uniform(encoder.level_count, 1), x), latent.to(dtype), latent)


@pytest.mark.parametrize("sides", [(1, 1), (2, 3), (2, 4), (3, 3)])
def test_few_positions(sides: tuple[int, int]) -> None:
    """Where there are no more positions than channels of a head diffusers takes the products in another order."""
    vae = theirs().double()
    x, z = noise(1, 3, sides[0] * 8, sides[1] * 8, dtype=torch.float64), noise(1, 8, *sides, dtype=torch.float64)
    latent, image = truth_of(vae, x, z)
    ours: Any = load_model(vae.state_dict(), config=vae.config).model
    assert_exact(run(decoder_of(ours).program, uniform(4, 1), z), image)
    assert_exact(run(encoder_of(ours, 8).program, uniform(4, 1), x), latent)
    assert_exact(ours.decode(z), image)


SCHEDULES: list[dict[str, Any]] = [
    {},
    {"store_hidden": False, "store_enlarged": False},
    {"store_hidden": False, "store_enlarged": False, "store_blocks": False, "store_ends": False},
    {"device_share": 0.4, "stream_attention": True, "store_enlarged": False},
]


def half_of(model: Any, direction: str) -> Any:
    return decoder_of(model) if direction == "decode" else encoder_of(model, 16)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_every_schedule_strip_height_and_odd_size(direction: str, pixels: bool, dtype: torch.dtype) -> None:
    model = narrow(dtype, pixels=pixels, whole=not pixels)
    program, double = half_of(model, direction).program, copy.deepcopy(model).double()
    f = 1 if direction == "decode" else 8
    schedules = SCHEDULES if dtype == torch.float64 else SCHEDULES[::2]
    sizes = ((1, 1, 1), (2, 7, 5))
    inputs = [noise(b, program.in_channels, height * f, width * f, dtype=dtype) for b, height, width in sizes]
    expected = [getattr(double, direction)(x.double()) for x in inputs]
    for options, strip_rows, number in covering_set(schedules, (1, 3, 1000), range(len(sizes))):
        out = run(program, uniform(program.level_count, strip_rows, **options), inputs[number])
        assert_exact(out, expected[number].to(dtype), expected[number])


def test_many_positions_and_large_values_lose_nothing_in_float32() -> None:
    """Sums over positions of which some are thousands of times the others."""
    model = narrow()
    z = noise(1, 16, 32, 24)
    z[:, :, 10:15] *= 300
    truth = copy.deepcopy(model).double().decode(z.double())
    for strip_rows in (1, 64):
        assert_exact(run(decoder_of(model).program, uniform(4, strip_rows), z), truth.float(), truth)


@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_seamless_borders(direction: str) -> None:
    """Without larger scales, whose borders are zeros: beside those they are refused."""
    config = dc_ae(16, 8, 16, 32, 32, pixels=False)
    model, scaled = random_model(Row("dc_ae", config, 16, 8)).double(), copy.deepcopy(narrow())
    for layer in (*model.modules(), *scaled.modules()):
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            layer.padding_mode = "circular"
    half, f = half_of(model, direction), 1 if direction == "decode" else 8
    x = noise(1, half.program.in_channels, 5 * f, 3 * f, dtype=torch.float64)
    for options in SCHEDULES:
        assert_exact(run(half.program, uniform(4, 2, **options), x), getattr(model, direction)(x))
    with pytest.raises(UnsupportedModule, match="expected circular padding as elsewhere, got zeros"):
        half_of(scaled, direction)


@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_err_no_more_than_untiled(direction: str, dtype: torch.dtype, pixels: bool) -> None:
    model = copy.deepcopy(narrow(pixels=pixels, whole=not pixels)).to(dtype)
    half = half_of(model, direction)
    x = (noise(1, 16, 12, 10) if direction == "decode" else noise(1, 3, 96, 80)).to(dtype)
    untiled = getattr(model, direction)(x)
    exact = run(half.program, uniform(half.program.level_count, 8), x)
    assert_exact(exact, untiled, getattr(model.double(), direction)(x.double()))


def test_what_the_engine_cannot_read_is_refused_by_name() -> None:
    model = copy.deepcopy(narrow(whole=False))
    model.decoder.train()
    with pytest.raises(UnsupportedModule, match=r"norm: expected evaluation mode, got a BatchNorm in training"):
        decoder_of(model)
    model = random_model(Row("dc_ae", DCConfig(8, None, _narrowing()), 8, 2))
    assert model.decode(noise(1, 8, 3, 3)).shape == (1, 3, 6, 6)
    with pytest.raises(UnsupportedModule, match=r"up_blocks.*: expected one, two or four times the channels"):
        decoder_of(model)


def _narrowing() -> DCLevels:
    """Of a smaller level with half the channels of the larger one."""
    return DCLevels((Stage(16, 1), Stage(8, 1)), pixels=False)


SHARES = [1.0, 0.5, 0.3, 0.2, 0.1]
"""Of the untiled peak."""


@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_five_budgets_down_to_a_tenth_of_the_untiled_peak(direction: str) -> None:
    model = narrow()
    half = half_of(model, direction)
    x = noise(1, 16, 40, 32) if direction == "decode" else noise(1, 3, 320, 256)
    with LiveTensorMeter() as meter:
        expected = getattr(model, direction)(x)
    for share in SHARES:
        plan = make_plan(half.program, x.shape, torch.float32, int(share * meter.peak_bytes), AMPLE)
        assert plan.peak_bytes <= share * meter.peak_bytes
        assert_exact(run(half.program, plan.schedule, x), expected)


@pytest.mark.parametrize(
    ("name", "direction", "share"),
    [
        ("Sana", "decode", 1.0),
        ("Sana", "decode", 0.2),
        ("Sana", "encode", 0.0),
        ("f64", "decode", 0.0),
        ("f64", "encode", 0.2),
    ],
)
def test_plans_of_the_full_width(name: str, direction: str, share: float) -> None:
    """Shares of what a run takes that nothing keeps short, above the least that does."""
    config = _full_width(name)
    with META:
        model: Any = DCAutoencoder(config).half().eval()
    z, f = config.latent_channels, config.factor
    program = (decoder_of(model) if direction == "decode" else encoder_of(model, z)).program
    shape = (1, z, 6, 5) if direction == "decode" else (1, 3, 6 * f, 5 * f)
    resident = make_plan(program, shape, torch.float16, AMPLE, device_type="meta")
    with pytest.raises(MemoryBudgetError) as refused:
        make_plan(program, shape, torch.float16, 1, AMPLE, device_type="meta")
    smallest = refused.value.needed_bytes
    assert smallest is not None
    budget = int(smallest + share * (resident.peak_bytes - smallest))
    plan = make_plan(program, shape, torch.float16, budget, AMPLE, device_type="meta")
    assert_predicted(program, plan, shape)
    assert resident.work_ratio <= 1.0


def _full_width(name: str) -> DCConfig:
    if name == "Sana":
        return dc_ae(32, 128, 256, 512, 512, 1024, 1024, pixels=False, head_dim=32)
    return dc_ae(128, 128, 256, 512, 512, 1024, 1024, 2048, whole=False)
