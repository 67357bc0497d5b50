"""Fast convolutions of strips: equal to the plain ones, whatever the size, and refused where they do not belong."""

from __future__ import annotations

import pytest
import torch
from exact_vae.vae_model.exact.extent import Extent
from exact_vae.vae_model.exact.layer import Conv
from exact_vae.vae_model.exact.read import read_conv
from exact_vae.vae_model.exact.stream.context import Context
from exact_vae.vae_model.kernels.plain import PlainConvolution
from exact_vae.vae_model.kernels.winograd import CHUNK_BYTES, plan_product_tiles, window_rows
from exact_vae.vae_model.kernels.winograd_upsample import plan_product_upsample
from torch import Tensor, nn
from torch.nn import functional

CLOSE = {"atol": 1e-5, "rtol": 0.0}
"""Results are near 1; a sum of 9 * 40 rounded products is right to about 1e-6, the transforms cost three times that."""


def make_conv(in_channels: int, out_channels: int, *, bias: bool = True) -> Conv:
    torch.manual_seed(in_channels + out_channels)
    return read_conv(nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias).requires_grad_(False), "conv")


def pixels(x: Tensor) -> Tensor:
    """(1, C, H, W) -> (H, W, C), dense."""
    return x[0].permute(1, 2, 0).contiguous()


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (4, 4), (5, 7), (8, 33), (17, 6), (3, 40)])
@pytest.mark.parametrize("strip_rows", [1, 4, 64])
@pytest.mark.parametrize("bias", [True, False])
def test_tiles_equal_the_convolution(rows: int, width: int, strip_rows: int, bias: bool) -> None:
    conv = make_conv(40, 24, bias=bias)
    geometry = plan_product_tiles(conv.channels, width, strip_rows)
    x = torch.randn(1, 40, rows + 2, width + 2)
    expected = functional.conv2d(
        x.double(), conv.module.weight.double(), None if not bias else conv.module.bias.double()
    )
    left, right = geometry.columns
    window = torch.zeros(window_rows(rows), left + width + right, 40)
    window[: rows + 2, : width + 2] = pixels(x)
    scratch = torch.full((geometry.scratch_bytes // 4 + 5,), torch.nan)  # whatever it held must not show
    out = torch.full((rows, width, 24), torch.nan)
    geometry.run(window, geometry.transform_weight(conv.module.weight), conv.module.bias, scratch, out)
    torch.testing.assert_close(out.double(), pixels(expected), **CLOSE)


@pytest.mark.parametrize("height", [1, 2, 5])
@pytest.mark.parametrize("width", [1, 5, 6, 7])
@pytest.mark.parametrize("strip_rows", [1, 2, 8])
def test_tiles_equal_the_enlargement(height: int, width: int, strip_rows: int) -> None:
    """All ranges of rows, from odd and even ones."""
    conv = make_conv(24, 40)
    x = torch.randn(1, 24, height, width)
    large = functional.interpolate(x.double(), scale_factor=2.0, mode="nearest")
    expected = pixels(functional.conv2d(large, conv.module.weight.double(), conv.module.bias.double(), padding=1))
    geometry = plan_product_upsample(conv.channels, width, strip_rows)
    padded = functional.pad(x, (*geometry.columns, 1, 1))
    weight = geometry.transform_weight(conv.module.weight)
    for top in range(2 * height):
        for bottom in range(top + 1, 2 * height + 1):
            window = pixels(padded[:, :, (top - 1) // 2 + 1 : bottom // 2 + 2])
            scratch = torch.full((geometry.scratch_bytes // 4 + 5,), torch.nan)
            out = torch.full((bottom - top, 2 * width, 40), torch.nan)
            geometry.run(window, weight, conv.module.bias, scratch, out, top)
            torch.testing.assert_close(out.double(), expected[top:bottom], **CLOSE)


def test_wide_layers_stay_within_32_roundings() -> None:
    """512 channels, values as behind norm and SiLU: mean error against float64, in roundings of the results' own size.

    These stay at 25 to 28 on all processors; the library's plain sum is at 4 with AVX-512 and at 20 with AVX2.
    """
    conv = make_conv(512, 96)
    x = functional.silu(torch.randn(1, 512, 10, 34))
    weight, bias = conv.module.weight, conv.module.bias
    expected = pixels(functional.conv2d(x.double(), weight.double(), bias.double()))
    geometry = plan_product_tiles(conv.channels, 32, 8)
    window = torch.zeros(10, 2 + 32 + geometry.columns[1] - 1, 512)
    window[:, :34] = pixels(x)
    out = torch.empty(8, 32, 96)
    scratch = torch.empty(geometry.scratch_bytes // 4)
    geometry.run(window, geometry.transform_weight(weight), bias, scratch, out)
    error, size = ((values.square().mean().sqrt()) for values in (out.double() - expected, expected))
    assert error <= 32 * 2**-24 * size


def test_only_where_it_pays() -> None:
    wide, narrow = make_conv(96, 128), make_conv(64, 128)
    strided = read_conv(nn.Conv2d(96, 96, 3, stride=2, padding=1), "down", stride=2)
    assert fast(wide, 32)
    assert not fast(wide, 31)
    assert not fast(narrow, 64)
    assert not fast(strided, 64)
    assert not fast(wide, 64, rows=0)
    assert not fast(wide, 64, torch.bfloat16)
    assert not fast(wide, 64, torch.float64)
    assert not fast(wide, 64, device="cuda")
    assert not fast(wide, 64, channels_last=False)


def fast(
    conv: Conv, width: int, dtype: torch.dtype = torch.float32, rows: int = 8, device: str = "cpu", **options: bool
) -> bool:
    """Whether a run takes another method than the plain one."""
    context = Context(1, dtype, torch.device(device), **options)
    return not isinstance(
        context.method("convolve", conv, Extent(conv.in_channels, max(1, rows), width), rows), PlainConvolution
    )


def test_memory_is_bounded() -> None:
    for width in (32, 1000, 4096):
        geometry = plan_product_tiles((128, 128), width, 512)
        assert geometry.scratch_bytes <= CHUNK_BYTES or geometry.tile_rows == 1
        larger = plan_product_upsample((128, 128), width, 512)
        assert larger.scratch_bytes <= CHUNK_BYTES or larger.rows == 1


def test_weights_are_transformed_in_little_memory() -> None:
    from exact_vae.benchmarks.meter import LiveTensorMeter

    conv = make_conv(128, 128)
    tiles = plan_product_tiles(conv.channels, 32, 8)
    with LiveTensorMeter("cpu") as meter:
        made = tiles.transform_weight(conv.module.weight)
    assert made.shape == (6, 6, 128, 128)
    assert made.numel() * 4 == tiles.weight_bytes
    assert meter.peak_bytes <= tiles.weight_bytes + tiles.transform_bytes
