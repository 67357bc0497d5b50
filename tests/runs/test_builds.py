"""How often a model is read into a program: once a run, and once more where loading may have changed it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from exact_vae import VAE
from exact_vae.model_management import LocalHost
from exact_vae.model_management.exact_vae import make_exact
from exact_vae.vae_model.exact.program import Program
from torch import nn

CPU = torch.device("cpu")
DIRECTIONS = pytest.mark.parametrize("direction", ["decode", "encode"])
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Program]:
    """Every program that is made."""
    programs: list[Program] = []
    plain = Program.__init__

    def noted(self: Program, *args: Any, **options: Any) -> None:
        plain(self, *args, **options)
        programs.append(self)

    monkeypatch.setattr(Program, "__init__", noted)
    return programs


def sample(direction: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 4, 6, 5, generator=generator) if direction == "decode" else torch.rand(1, 48, 40, 3)


@DIRECTIONS
@pytest.mark.parametrize("options", [{}, {"memory": "1.5MiB"}, {"tile_size": 16}], ids=str)
def test_a_vae_of_ours_is_read_once_a_run(
    small_vae: VAE, built: list[Program], direction: str, options: dict[str, Any]
) -> None:
    vae = VAE(small_vae.loaded, LocalHost(), device=CPU, dtype=torch.float32, output_device=CPU)
    for runs in (1, 2):
        getattr(vae, direction)(sample(direction), **options)
        assert len(built) == runs


def test_other_methods_read_nothing(small_vae: VAE, built: list[Program]) -> None:
    small_vae.decode(sample("decode"), "untiled")
    small_vae.encode(sample("encode"), "blend")
    assert built == []


def test_a_layer_changed_between_two_runs_is_the_one_that_runs(small_vae: VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    vae, z = small_vae, sample("decode")
    plain = vae.decode(z)
    decoder: Any = vae.first_stage_model.decoder
    other = nn.Conv2d(4, decoder.conv_in.out_channels, 3, padding=1)
    monkeypatch.setattr(decoder, "conv_in", other)
    changed = vae.decode(z)
    assert float((changed - plain).abs().max()) > 0.01
    torch.testing.assert_close(changed, vae.decode(z, "untiled"), rtol=0, atol=2e-5)  # float32's bound, of 0..1


@pytest.mark.parametrize("replaced", ["layer", "weight"])
@DIRECTIONS
def test_a_host_that_patches_when_it_loads_has_its_patches_run(
    small_vae: VAE, built: list[Program], direction: str, replaced: str
) -> None:
    """Such a host does not say that loading moved tensors alone."""
    coder: Any = getattr(small_vae.first_stage_model, f"{direction}r")
    plain = coder.conv_in
    other = nn.Conv2d(plain.in_channels, plain.out_channels, 3, padding=1)
    weight = plain.weight

    class Patching(LocalHost):
        def load_model(self, model: nn.Module, device: torch.device, memory_required: int = 0) -> None:
            if replaced == "layer":
                coder.conv_in = other
            else:
                plain.weight = other.weight

    vae = VAE(small_vae.loaded, Patching(), device=CPU, dtype=torch.float32, output_device=CPU)
    x = sample(direction)
    before = getattr(small_vae, direction)(x)
    built.clear()
    try:
        found = getattr(vae, direction)(x)
        assert len(built) == 2
        untiled = getattr(vae, direction)(x, "untiled")
    finally:
        coder.conv_in, plain.weight = plain, weight
    assert float((found - before).abs().max()) > 0.01
    torch.testing.assert_close(found, untiled, rtol=0, atol=2e-5 * max(1.0, float(untiled.abs().max())))


@DIRECTIONS
def test_a_vae_of_the_host_is_read_before_and_after_loading(
    stub_host: Any, built: list[Program], direction: str
) -> None:
    made = make_exact(stub_host.make_vae())
    built.clear()
    getattr(made, direction)(sample(direction))
    assert made.last_report.exact
    assert len(built) == 2


def patched_layer(vae: Any) -> nn.Module:
    plain = vae.first_stage_model.decoder.conv_in
    return nn.Conv2d(plain.in_channels, plain.out_channels, 3, padding=1).requires_grad_(False)


def unknown_layer(vae: Any) -> nn.Module:
    return nn.Sequential(patched_layer(vae))


@pytest.mark.parametrize(("make", "exact"), [(patched_layer, True), (unknown_layer, False)])
def test_an_object_patch_of_the_host_s_runs(stub_host: Any, make: Callable[[Any], nn.Module], exact: bool) -> None:
    """By the engine, or, where it has no rule for what was put in on loading, by the VAE's own method, once."""
    vae, z = stub_host.make_vae(), sample("decode")
    plain = vae.decode(z)
    vae.patcher.add_object_patch("decoder.conv_in", make(vae))
    made = make_exact(vae)
    found = made.decode(z)
    assert made.last_report.exact is exact
    stub_host.forget()
    expected = vae.decode(z)
    assert float((expected - plain).abs().max()) > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)  # float32's bound, of 0..1
