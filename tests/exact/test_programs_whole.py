"""Whole programs against the modules they were built from: every family, schedule, strip height and kind of border.

Where there are many of each, the cases are those in which every two of them meet.

Tolerances are the project's: tests/exactness.py.
"""

import os
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae.tests.covering import covering_set
from exact_vae.tests.exact.coders import FAMILIES, MODES, SCHEDULES, decoder, encoder, hard_input, pixels, run, tiny
from exact_vae.tests.exact.programs import build_program
from exact_vae.tests.exactness import TOLERANCE, assert_exact
from exact_vae.vae_model.exact.layer import UnsupportedModule
from exact_vae.vae_model.exact.schedule import LevelSchedule, uniform

pytestmark = pytest.mark.usefixtures("inference")


def covering_by_first(*axes: Iterable[Any]) -> dict[Any, list[tuple[Any, ...]]]:
    """The covering cases by their value of the first axis, the test's own parameter."""
    cases = covering_set(*axes)
    return {first: [case[1:] for case in cases if case[0] == first] for first, *_ in cases}


HEIGHTS = covering_by_first(
    ["decoder with quant", "encoder with quant", "taef2 decoder", "taef2 encoder"], SCHEDULES, range(1, 22)
)


@pytest.mark.parametrize("name", HEIGHTS)
def test_every_strip_height(name: str) -> None:
    family = FAMILIES[name]()
    program = family.program
    x = hard_input(program, 1, 5 * pixels(name), 7 * pixels(name) - 1)
    expected = family.run(x)
    for schedule, strip_rows in HEIGHTS[name]:
        plan = uniform(program.level_count, strip_rows, **SCHEDULES[schedule])
        assert_exact(run(program, plan, x), expected)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name: str, dtype: torch.dtype) -> None:
    family = FAMILIES[name]().to(dtype)
    program, scale = family.program, pixels(name)
    inputs = {
        batch: hard_input(program, batch, height, width).to(dtype)
        for batch, height, width in ((1, scale, 9 * scale), (3, 5 * scale + scale // 2, 3 * scale))
    }
    expected = {batch: family.run(x) for batch, x in inputs.items()}
    for options, strip_rows, batch, channels_last in covering_set(SCHEDULES.values(), (2, 5), inputs, (True, False)):
        plan = uniform(program.level_count, strip_rows, **options)
        assert_exact(run(program, plan, inputs[batch], channels_last), expected[batch])


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", ["decoder that narrows and widens", "encoder with attention in levels"])
def test_levels_may_be_scheduled_differently(name: str, seed: int) -> None:
    family, choice = FAMILIES[name](), random.Random(seed)
    program = family.program
    x = hard_input(program, 2, 4 * pixels(name) + 1, 5 * pixels(name))
    plan = tuple(
        LevelSchedule(
            choice.randint(1, 9),
            *(choice.random() < 0.5 for _ in range(3)),
            choice.choice([0.0, 0.3, 0.5, 1.0]),
            choice.random() < 0.5,
        )
        for _ in range(program.level_count)
    )
    assert_exact(run(program, plan, x), family.run(x))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 13), (13, 1), (2, 2), (3, 8), (17, 11)])
def test_odd_and_tiny_latents(height: int, width: int, batch: int) -> None:
    family = decoder(quant=True)
    program = family.program
    x = hard_input(program, batch, height, width)
    expected = family.run(x)
    for options in SCHEDULES.values():
        assert_exact(run(program, uniform(3, 3, **options), x), expected)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (4, 31), (7, 5), (18, 23), (21, 16)])
def test_images_of_odd_sizes(height: int, width: int) -> None:
    # Sides that halving rounds down, once or twice; the tiny encoder rounds them up.
    for family in (encoder(), tiny("encoder", midblock_gn=True)):
        program = family.program
        x = hard_input(program, 1, height, width)
        expected = family.run(x)
        for options in SCHEDULES.values():
            assert_exact(run(program, uniform(3, 3, **options), x), expected)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        (name, mode)
        for name in (
            "decoder with quant",
            "encoder",
            "taesd decoder",
            "taesd encoder",
            "taef2 decoder",
            "taef2 encoder",
        )
        for mode in MODES
    ],
)
def test_every_border(name: str, mode: str) -> None:
    family = FAMILIES[name]().pad(mode)
    program, scale = family.program, pixels(name)
    inputs = [hard_input(program, 2, 4 * scale, 5 * scale), hard_input(program, 2, 3 * scale, 3 * scale)]
    expected = [family.run(x) for x in inputs]
    for options, strip_rows, size in covering_set(SCHEDULES.values(), (1, 2, 3, 7, 100), (0, 1)):
        assert_exact(run(program, uniform(3, strip_rows, **options), inputs[size]), expected[size])


def refused_or(check: Callable[[], None]) -> None:
    """Both are right: to refuse a module before anything runs, and to run it exactly."""
    try:
        check()
    except UnsupportedModule as error:
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["decoder", "encoder", "taesd decoder", "taef2 encoder"])
def test_borders_of_several_kinds_in_one_model(name: str, seed: int) -> None:
    choice = random.Random(seed)
    family = FAMILIES[name]().pad(lambda: choice.choice(MODES))

    def check() -> None:
        program, scale = family.program, pixels(name)
        x = hard_input(program, 1, 5 * scale, 4 * scale)
        expected = family.run(x)
        for options in SCHEDULES.values():
            assert_exact(run(program, uniform(3, 2, **options), x), expected)

    refused_or(check)


@pytest.mark.parametrize(("height", "width"), [(18, 16), (23, 30), (13, 13)])
@pytest.mark.parametrize("name", ["encoder", "taesd encoder", "taef2 encoder"])
def test_circular_encoders_of_odd_sizes(name: str, height: int, width: int) -> None:
    # Where halving rounds, the row above the first of a strided result is not the row below its last.
    family = FAMILIES[name]().pad("circular")
    program = family.program
    x = hard_input(program, 1, height, width)
    expected = family.run(x)
    for options in SCHEDULES.values():
        assert_exact(run(program, uniform(3, 2, **options), x), expected)


@pytest.mark.parametrize(("height", "width"), [(1, 5), (5, 1)])
def test_what_the_module_cannot_reflect_is_an_error_here_too(height: int, width: int) -> None:
    family = decoder().pad("reflect")
    x = hard_input(family.program, 1, height, width)
    with pytest.raises(RuntimeError, match="Padding size"):
        family.run(x)
    with pytest.raises((RuntimeError, ValueError)):
        run(family.program, uniform(3, 2), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["decoder with quant", "encoder with quant", "taef2 decoder", "taesd encoder"])
def test_16_bit_errors_are_no_larger_than_the_modules(name: str, dtype: torch.dtype) -> None:
    family = FAMILIES[name]().to(dtype)
    x = hard_input(family.program, 1, 12 * pixels(name), 12 * pixels(name)).to(dtype)
    untiled = family.run(x)
    results = [
        run(family.program, uniform(3, 5, **options), x, channels_last)
        for options in SCHEDULES.values()
        for channels_last in (True, False)
    ]
    truth = family.to(torch.float64).run(x.double())
    for result in results:
        assert_exact(result, untiled, truth)


LARGE = covering_set(SCHEDULES, [(33, 48), (65, 97)], TOLERANCE, ["decoder", "encoder"])


@pytest.mark.slow
@pytest.mark.parametrize(("schedule", "size", "dtype", "kind"), LARGE)
def test_larger_images(schedule: str, size: tuple[int, int], dtype: torch.dtype, kind: str) -> None:
    narrow: dict[str, Any] = {"ch": 4, "ch_mult": (1, 1, 2, 2), "num_groups": 2}
    family, scale = (decoder(**narrow), 1) if kind == "decoder" else (encoder(**narrow), 8)
    program = family.to(dtype).program
    x = hard_input(program, 1, size[0] * scale, size[1] * scale).to(dtype)
    assert_exact(run(program, uniform(4, 40, **SCHEDULES[schedule]), x), family.run(x))


@pytest.fixture
def host_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The host's module of ldm layers; everything it imported is forgotten again."""
    folder = os.environ.get("COMFYUI_DIR")
    if not folder:
        pytest.skip("COMFYUI_DIR names no checkout of the host")
    monkeypatch.syspath_prepend(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not torch.cuda.is_available():
            pytest.importorskip("comfy.cli_args").args.cpu = True
        model = pytest.importorskip("comfy.ldm.modules.diffusionmodules.model")
    yield model
    root = Path(folder).resolve()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and root in Path(file).resolve().parents:
            del sys.modules[name]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_hosts_own_classes_run_unchanged(host_model: Any, dtype: torch.dtype) -> None:
    options: dict[str, Any] = {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "z_channels": 4, "resolution": 64}
    options |= {"in_channels": 3, "out_ch": 3, "attn_resolutions": []}
    for kind, height, width in (("Decoder", 5, 7), ("Encoder", 21, 18)):
        model = getattr(host_model, kind)(**options)
        generator = torch.Generator().manual_seed(8)
        for name, parameter in model.named_parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5
            parameter.data += parameter.ndim == 1 and "norm" in name and name.endswith("weight")
        model = model.eval().requires_grad_(False).to(dtype)
        program = build_program(model)
        x = hard_input(program, 2, height, width).to(dtype)
        for schedule in SCHEDULES.values():
            assert_exact(run(program, uniform(2, 3, **schedule), x), model(x))
