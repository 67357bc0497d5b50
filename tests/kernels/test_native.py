"""Processor kernels in C: equal to the plain convolutions for every size, and left out where they cannot be had."""

from __future__ import annotations

import ctypes
import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae.benchmarks.meter import LiveTensorMeter
from exact_vae.vae_model.exact.extent import Extent
from exact_vae.vae_model.exact.layer import Conv
from exact_vae.vae_model.exact.read import read_conv
from exact_vae.vae_model.exact.stream.context import Context
from exact_vae.vae_model.kernels.cpu import compiler
from exact_vae.vae_model.kernels.cpu.blocks import Blocks, plan_tiles
from exact_vae.vae_model.kernels.cpu.kernels import kernels
from exact_vae.vae_model.kernels.method import Machine
from exact_vae.vae_model.kernels.winograd import ProductTiles, window_rows
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

needs_kernels = pytest.mark.skipif(kernels() is None, reason="no C compiler here, or it was told not to be used")
SOURCE = Path(compiler.__file__).with_name("tiles.c")


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make_conv(in_channels: int, out_channels: int, *, bias: bool = True) -> Conv:
    torch.manual_seed(in_channels + out_channels)
    return read_conv(nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias).requires_grad_(False), "conv")


def plan(conv: Conv, width: int, rows: int) -> Blocks:
    tiles = plan_tiles(Machine(torch.get_num_threads(), kernels()), conv.channels, width, rows)
    assert tiles is not None
    return tiles


def convolve(conv: Conv, tiles: Blocks, x: Tensor, rows: int) -> Tensor:
    """Of (1, in, rows + 2, width + 2): (1, out, rows, width). Memory that nobody wrote must not show."""
    window = torch.zeros(window_rows(rows), tiles.width + sum(tiles.columns), tiles.in_channels)
    window[: rows + 2, : tiles.width + 2] = x[0].permute(1, 2, 0)
    scratch = torch.full((tiles.scratch_bytes // 4 + 5,), torch.nan)
    room = torch.full((rows + 2, tiles.width, tiles.out_channels), 7.0)
    tiles.run(window, tiles.transform_weight(conv.module.weight), conv.module.bias, scratch[:-5], room[1:-1])
    assert scratch[-5:].isnan().all()
    assert room[0].eq(7).all()
    assert room[-1].eq(7).all()
    return room[1:-1].permute(2, 0, 1)[None]


def exact(conv: Conv, x: Tensor) -> Tensor:
    bias = conv.module.bias
    return functional.conv2d(x.double(), conv.module.weight.double(), None if bias is None else bias.double())


@needs_kernels
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (4, 4), (5, 7), (8, 33), (17, 6), (3, 40), (30, 61)])
@pytest.mark.parametrize("strip_rows", [1, 4, 64])
@pytest.mark.parametrize("bias", [True, False])
def test_every_size_of_plane_and_strip(rows: int, width: int, strip_rows: int, bias: bool) -> None:
    """In a strip that is taller than the planned one, too."""
    conv = make_conv(48, 64, bias=bias)
    x = torch.randn(1, 48, rows + 2, width + 2)
    result = convolve(conv, plan(conv, width, strip_rows), x, rows)
    torch.testing.assert_close(result.double(), exact(conv, x), atol=1e-5, rtol=0.0)


@needs_kernels
@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("rows", [4, 21])
def test_any_number_of_threads(count: int, rows: int, threads: None) -> None:
    """More threads than tiles, and numbers that do not divide them; planned for one number and run with another."""
    torch.set_num_threads(count)
    conv = make_conv(160, 32)
    tiles = plan(conv, 18, rows)
    x = torch.randn(1, 160, rows + 2, 20)
    torch.set_num_threads(2)
    torch.testing.assert_close(convolve(conv, tiles, x, rows).double(), exact(conv, x), atol=2e-5, rtol=0.0)


@needs_kernels
@pytest.mark.parametrize("channels", [128, 256, 400, 512])
def test_errors_stay_within_32_roundings(channels: int) -> None:
    """Values as behind norm and SiLU: mean error against float64, in roundings of the results' own size."""
    conv = make_conv(channels, 96)
    x = functional.silu(torch.randn(1, channels, 10, 34))
    error = convolve(conv, plan(conv, 32, 8), x, 8).double() - exact(conv, x)
    assert error.square().mean().sqrt() <= 32 * 2**-24 * exact(conv, x).square().mean().sqrt()


def chosen(conv: Conv) -> Any:
    """The tiles of the method that a run takes."""
    method: Any = Context(1, torch.float32, torch.device("cpu")).method(
        "convolve", conv, Extent(conv.in_channels, 16, 64), 16
    )
    return method.tiles


@needs_kernels
def test_channels_that_are_not_whole_vectors_go_the_other_way() -> None:
    for conv in (make_conv(97, 128), make_conv(128, 97)):
        assert isinstance(chosen(conv), ProductTiles)
    assert isinstance(chosen(make_conv(128, 128)), Blocks)


@needs_kernels
@pytest.mark.parametrize("count", [1, 2, 64])
def test_memory_is_bounded(count: int, threads: None) -> None:
    torch.set_num_threads(count)
    for channels, width, rows in ((128, 1000, 16), (128, 16384, 64), (512, 64, 4), (512, 2048, 512), (2048, 64, 64)):
        tiles = plan(make_conv(channels, 32), width, rows)
        least = tiles._replace(block=1).scratch_bytes * 12  # twelve tiles are the least that some processors can take
        assert tiles.scratch_bytes <= max(14 * 2**20, count * 4 * 2**20, least)


@needs_kernels
def test_weights_are_transformed_in_little_memory() -> None:
    conv = make_conv(128, 128)
    tiles = plan(conv, 64, 16)
    with LiveTensorMeter("cpu") as meter:
        made = tiles.transform_weight(conv.module.weight)
    assert made.numel() * 4 == tiles.weight_bytes
    assert meter.peak_bytes <= tiles.weight_bytes + tiles.transform_bytes


@needs_kernels
def test_tensors_without_data_are_let_through() -> None:
    conv = make_conv(32, 32)
    tiles = plan(conv, 8, 4)
    with FakeTensorMode(allow_non_fake_inputs=True):
        window = torch.empty(window_rows(4), 8 + sum(tiles.columns), 32)
        weight, out = tiles.transform_weight(torch.empty(32, 32, 3, 3)), torch.empty(4, 8, 32)
        tiles.run(window, weight, None, torch.empty(tiles.scratch_bytes // 4), out)
    assert weight.numel() == 36 * 32 * 32


# -- where there are none ----------------------------------------------------------------------------------------------


def load(is_right: bool = True) -> ctypes.CDLL | None:
    return compiler.load(SOURCE, lambda library: None, lambda library: is_right)


def said(caplog: pytest.LogCaptureFixture) -> str:
    return " ".join(record.getMessage() for record in caplog.records)


@pytest.fixture(autouse=True)
def listening(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, compiler.logger.name)


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    assert load() is None
    assert "PyTorch's own are used" in said(caplog)


def test_switched_off(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("EXACT_VAE_NATIVE", "0")
    assert load() is None
    assert "EXACT_VAE_NATIVE" in said(caplog)


def test_another_system(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(compiler.sys, "platform", "win32")
    assert load() is None
    assert "win32 is not Linux" in said(caplog)


def test_a_compiler_that_hangs(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def hang(*arguments: object, **options: object) -> None:
        raise subprocess.TimeoutExpired("cc", 60)

    monkeypatch.setattr(compiler.shutil, "which", lambda name: "/usr/bin/cc")
    monkeypatch.setattr(compiler, "_threads_library", lambda: "libgomp.so.1")
    monkeypatch.setattr(compiler.subprocess, "run", hang)
    assert load() is None
    assert "timed out" in said(caplog) or "not Linux" in said(caplog)


@needs_kernels
def test_a_source_that_does_not_compile(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = tmp_path / "broken.c"
    broken.write_text("int f(void) { return nothing; }\n")
    assert compiler.load(broken, lambda library: None, lambda library: True) is None
    assert "nothing" in said(caplog)


@needs_kernels
def test_wrong_results_are_found_before_they_are_used(caplog: pytest.LogCaptureFixture) -> None:
    assert load(is_right=True) is not None
    assert load(is_right=False) is None
    assert "tiles.c gives wrong results" in said(caplog)


@needs_kernels
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("1.5f * (x[3]", "1.5f * (x[2]"),
        ("- 8 * m[4]", "- 4 * m[4]"),
        ("{none, m[1], m[3]", "{none, m[1], m[2]"),
        ("{m[1], m[2], m[4]", "{m[0], m[2], m[4]"),
    ],
)
def test_the_trial_notices_a_wrong_factor(right: str, wrong: str, tmp_path: Path) -> None:
    from exact_vae.vae_model.kernels.cpu import blocks
    from exact_vae.vae_model.kernels.cpu import kernels as trial

    text = SOURCE.read_text(encoding="utf-8")
    assert right in text
    for number, source in enumerate((text, text.replace(right, wrong))):
        path = tmp_path / f"{number}.c"
        path.write_text(source)
        assert (compiler.load(path, blocks.declare, trial.is_right) is None) == (number == 1)
