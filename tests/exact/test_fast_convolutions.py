"""Whole programs with fast convolutions: equal to the module within the tolerance of float32, for every schedule."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exact_vae.tests.covering import covering_set
from exact_vae.tests.exact.coders import FAMILIES, MODES, SCHEDULES, decoder, encoder, hard_input, pixels, run
from exact_vae.tests.exactness import assert_exact
from exact_vae.vae_model.exact.program import Program
from exact_vae.vae_model.exact.schedule import uniform
from exact_vae.vae_model.families.ldm.config import LevelsConfig
from exact_vae.vae_model.families.wan.config import WanConfig
from exact_vae.vae_model.families.wan.model import WanVAE
from exact_vae.vae_model.families.wan.program import wan_program
from exact_vae.vae_model.kernels import methods as choice
from exact_vae.vae_model.kernels.cpu.kernels import kernels
from exact_vae.vae_model.kernels.methods import METHODS
from torch import Tensor

pytestmark = pytest.mark.usefixtures("inference")


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small layers are fast ones, too."""
    monkeypatch.setattr(choice, "LEAST_CHANNELS", 1)
    monkeypatch.setattr(choice, "LEAST_WIDTH", 1)


@pytest.fixture(params=["native", "products"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """By kernels of our own where there are some, and by a library's products."""
    if request.param == "products":
        by_products(monkeypatch)
    return request.param


def by_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out kernels of our own."""
    for kind, methods in METHODS.items():
        monkeypatch.setitem(METHODS, kind, methods[1:])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name: str, everywhere: None) -> None:
    family = FAMILIES[name]().to(torch.float32)
    program, scale = family.program, pixels(name)
    inputs = {
        batch: hard_input(program, batch, height, width).to(torch.float32)
        for batch, height, width in ((1, scale, 9 * scale), (2, 5 * scale + scale // 2, 3 * scale))
    }
    expected = {batch: family.run(x) for batch, x in inputs.items()}
    for options, strip_rows, batch in covering_set(SCHEDULES.values(), (1, 4, 6), inputs):
        plan = uniform(program.level_count, strip_rows, fast_convolution=True, **options)
        assert_exact(run(program, plan, inputs[batch]), expected[batch])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["decoder", "encoder"])
def test_every_border(name: str, mode: str, everywhere: None, way: str) -> None:
    family = FAMILIES[name]().pad(mode).to(torch.float32)
    program, scale = family.program, pixels(name)
    x = hard_input(program, 1, 3 * scale, 4 * scale + scale - 1).to(torch.float32)
    expected = family.run(x)
    for number, options in enumerate(SCHEDULES.values(), MODES.index(mode)):
        plan = uniform(program.level_count, 3 + number % 2, fast_convolution=True, **options)
        assert_exact(run(program, plan, x), expected)


@pytest.mark.skipif(kernels() is None, reason="needs a C compiler")
@pytest.mark.parametrize("rows", [3, 4])
@pytest.mark.parametrize("name", ["decoder", "encoder", "wan decoder", "wan encoder"])
def test_kernels_of_our_own_under_every_schedule(
    name: str, rows: int, everywhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of so many channels as they take; layers that are computed from computed rows begin with odd ones."""
    program, module = wide(name)
    scale = 4 if "encoder" in name else 1
    x = hard_input(program, 1, 11 * scale, 9 * scale).float()
    expected = module(x.double()).float()
    runs = {
        key: run(program, uniform(program.level_count, rows, fast_convolution=True, **SCHEDULES[key]), x)
        for key in ("resident", "recompute", "recompute all", "half spill")
    }
    for result in runs.values():
        assert_exact(result, expected)
    by_products(monkeypatch)
    products = run(program, uniform(program.level_count, rows, fast_convolution=True), x)
    assert not torch.equal(products, runs["resident"]), "kernels of our own were not used"


def wide(name: str) -> tuple[Program, Callable[[Tensor], Tensor]]:
    """A program of 32 and 64 channels, and its module in float64 with what stands around it."""
    half, generator = name.split()[-1], torch.Generator().manual_seed(5)
    if "wan" not in name:
        family = (decoder if half == "decoder" else encoder)(ch=32, num_groups=8)
        double = copy.deepcopy(family.module)
        return family.to(torch.float32).program, double
    levels = LevelsConfig(32, (32, 64, 64), 1)
    model = WanVAE(WanConfig(16, levels, levels, (False, False))).requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1 + (parameter.ndim in (3, 4)))
    double: Any = copy.deepcopy(model).double()
    if half == "decoder":
        return wan_program(model.decoder, before=model.conv2), double.decode
    return wan_program(model.encoder, after=model.conv1), lambda x: double.conv1(double.encoder(x))


@pytest.mark.parametrize("name", ["decoder", "encoder"])
def test_wide_models_as_they_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels and columns enough for the method to be chosen by itself; 16 times the values, so errors would show."""
    make = decoder if name == "decoder" else encoder
    family = make(ch=96, ch_mult=(1, 2), num_groups=32).to(torch.float32)
    program = family.program
    x = hard_input(program, 1, 12 * (2 if name == "encoder" else 1), 40 * (2 if name == "encoder" else 1)).float()
    expected = family.run(x.double().float())
    native, plain = (run(program, uniform(2, 8, fast_convolution=fast), x) for fast in (True, False))
    by_products(monkeypatch)
    products = run(program, uniform(2, 8, fast_convolution=True), x)
    for result in (native, products, plain):
        assert_exact(result, expected)
    assert not torch.equal(products, plain), "fast convolutions were not used"
    assert torch.equal(products, native) == (kernels() is None), "kernels of our own were not used"
