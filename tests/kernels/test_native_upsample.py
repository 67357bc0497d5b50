"""Enlargements by kernels of our own: equal to interpolation and convolution, whatever the rows, in little memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exact_vae.benchmarks.meter import LiveTensorMeter
from exact_vae.vae_model.exact.extent import Extent
from exact_vae.vae_model.exact.layer import Conv
from exact_vae.vae_model.exact.ops import upsample as enlarged
from exact_vae.vae_model.exact.read import read_conv
from exact_vae.vae_model.exact.stream.context import Context
from exact_vae.vae_model.exact.stream.source import InputSource
from exact_vae.vae_model.kernels.cpu.blocks import Blocks, plan_upsample_tiles
from exact_vae.vae_model.kernels.cpu.kernels import kernels
from exact_vae.vae_model.kernels.method import Machine
from exact_vae.vae_model.kernels.winograd_upsample import ProductUpsample
from torch import Tensor, nn
from torch.nn import functional

pytestmark = pytest.mark.skipif(kernels() is None, reason="no C compiler here, or it was told not to be used")


def make_conv(in_channels: int, out_channels: int, *, bias: bool = True) -> Conv:
    torch.manual_seed(in_channels + out_channels)
    return read_conv(nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias).requires_grad_(False), "conv")


def plan(conv: Conv, width: int, rows: int) -> Blocks:
    geometry = plan_upsample_tiles(Machine(torch.get_num_threads(), kernels()), conv.channels, width, rows)
    assert geometry is not None
    return geometry


def exact(conv: Conv, x: Tensor) -> Tensor:
    """(2 * H, 2 * W, out), float64."""
    large = functional.interpolate(x.double(), scale_factor=2.0, mode="nearest")
    bias = conv.module.bias
    bias = None if bias is None else bias.double()
    return functional.conv2d(large, conv.module.weight.double(), bias, padding=1)[0].permute(1, 2, 0)


def enlarge(conv: Conv, geometry: Blocks, x: Tensor, top: int, bottom: int, *, odd: bool) -> Tensor:
    """Those rows, (n, 2 * W, out). Memory that nobody wrote must not show, and no other may be written."""
    padded = functional.pad(x, (*geometry.columns, 1, 1))[0].permute(1, 2, 0)
    window = padded[(top - 1) // 2 + 1 : bottom // 2 + 2].contiguous()
    scratch = torch.full((geometry.scratch_bytes // 4 + 5,), torch.nan)
    room = torch.full((bottom - top + 2, 2 * geometry.width, geometry.out_channels), 7.0)
    weight = geometry.transform_weight(conv.module.weight, odd=odd)
    geometry.run(window, weight, conv.module.bias, scratch[:-5], room[1:-1], top, odd=odd)
    assert scratch[-5:].isnan().all()
    assert room[0].eq(7).all()
    assert room[-1].eq(7).all()
    return room[1:-1]


@pytest.mark.parametrize("height", [1, 2, 5])
@pytest.mark.parametrize("width", [1, 4, 5, 7])
@pytest.mark.parametrize("strip_rows", [1, 8])
def test_every_range_of_rows(height: int, width: int, strip_rows: int) -> None:
    conv = make_conv(48, 64, bias=width != 4)
    geometry = plan(conv, width, strip_rows)
    x = torch.randn(1, 48, height, width)
    expected = exact(conv, x)
    for top in range(2 * height):
        for bottom in range(top + 1, 2 * height + 1):
            for odd in (True,) if top % 2 else (False, True):
                made = enlarge(conv, geometry, x, top, bottom, odd=odd)
                torch.testing.assert_close(made.double(), expected[top:bottom], atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("odd", [False, True])
def test_many_blocks_and_threads(odd: bool) -> None:
    """And more results than are made at once."""
    conv, x = make_conv(160, 320), torch.randn(1, 160, 22, 70)
    for threads in (1, 2, 5):
        geometry = plan(conv, 70, 22)._replace(threads=threads)
        made = enlarge(conv, geometry, x, int(odd), 44, odd=odd)
        torch.testing.assert_close(made.double(), exact(conv, x)[int(odd) :], atol=2e-5, rtol=0.0)


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("channels", [128, 256, 400, 512])
def test_errors_stay_within_32_roundings(channels: int, odd: bool) -> None:
    """Mean error against float64, in roundings of the results' own size."""
    conv = make_conv(channels, 96)
    x = torch.randn(1, channels, 8, 32)
    expected = exact(conv, x)[int(odd) :]
    error = enlarge(conv, plan(conv, 32, 8), x, int(odd), 16, odd=odd).double() - expected
    assert error.square().mean().sqrt() <= 32 * 2**-24 * expected.square().mean().sqrt()


@pytest.mark.parametrize("step", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("first", [1, 2, 3, 8])
def test_strips_that_begin_with_any_row(first: int, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are made for even or odd first rows at the first strip, and again if that turns out wrong, only once."""
    made: list[bool] = []
    transform = Blocks.transform_weight

    def noted(self: Blocks, weight: Tensor, *, odd: bool) -> Tensor:
        made.append(odd)
        return transform(self, weight, odd=odd)

    monkeypatch.setattr(Blocks, "transform_weight", noted)
    conv = make_conv(96, 96)
    x = torch.randn(1, 96, 9, 33)
    context = Context(1, torch.float32, torch.device("cpu"))
    size = Extent(96, 9, 33)

    def source(top: int, bottom: int) -> InputSource:
        return InputSource(context, size, top, bottom, lambda top, bottom: x[:, :, top:bottom])

    rows = enlarged.UpsampledSource(context, conv, 0, 18, source, size, fast_rows=8)
    pieces = [*rows.take(first)]
    while rows.at < 18:
        pieces += rows.take(min(18, rows.at + step))
    result = torch.cat(pieces, dim=2)[0].permute(1, 2, 0)
    torch.testing.assert_close(result.double(), exact(conv, x), atol=1e-5, rtol=0.0)
    expected = [True] if first % 2 else [False] if step % 2 == 0 else [False, True]
    assert made == expected


def chosen(conv: Conv) -> Any:
    """The tiles of the method that a run takes."""
    method: Any = Context(1, torch.float32, torch.device("cpu")).method(
        "upsample", conv, Extent(conv.in_channels, 32, 64), 32
    )
    return method.tiles


def test_channels_that_are_not_whole_vectors_go_the_other_way() -> None:
    for conv in (make_conv(97, 128), make_conv(128, 97)):
        assert isinstance(chosen(conv), ProductUpsample)
    assert isinstance(chosen(make_conv(128, 128)), Blocks)


def test_memory_is_bounded() -> None:
    for channels, width, rows in ((128, 1000, 16), (128, 16384, 64), (512, 64, 4), (512, 2048, 512), (2048, 64, 64)):
        geometry = plan(make_conv(channels, 32), width, rows)._replace(threads=1)
        least = geometry._replace(block=12).scratch_bytes  # twelve tiles are the least that some processors can take
        assert geometry.scratch_bytes <= max(14 * 2**20, least)


@pytest.mark.parametrize("odd", [False, True])
def test_weights_are_transformed_in_little_memory(odd: bool) -> None:
    conv = make_conv(128, 128)
    geometry = plan(conv, 64, 16)
    with LiveTensorMeter("cpu") as meter:
        made = geometry.transform_weight(conv.module.weight, odd=odd)
    assert made.numel() * 4 == geometry.weight_bytes
    assert meter.peak_bytes <= geometry.weight_bytes + geometry.transform_bytes
