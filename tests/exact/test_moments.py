"""Moments merged over strips, against those of the whole plane in float64 and against PyTorch's own GroupNorm.

Tolerances: float64 sums of a few thousand values agree to 1e-13 or better, 1e-12 is asked for. In float32 one rounding
is 6e-8; statistics of a few thousand values are asked for to 1e-5 of the deviation, also where the offset is 10,000
times as large as the deviation and the sum of squares would have lost everything.
"""

import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from exact_vae.vae_model.exact.stream import moments as module
from exact_vae.vae_model.exact.stream.moments import Moments
from exact_vae.vae_model.kernels.profile import PROFILES
from torch import Tensor
from torch.nn import functional


def hard_plane(batch: int, channels: int, height: int, width: int, offset: float = 0.0) -> Tensor:
    """Rows that differ in mean and spread, one outlier, and an offset: white noise would hide wrong merging."""
    x = torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x *= torch.linspace(0.1, 3, height, dtype=torch.float64)[:, None]
    x += torch.linspace(-3, 5, height, dtype=torch.float64)[:, None] + torch.arange(channels)[:, None, None] * 0.1
    x[0, 0, 0, -1] = 40.0
    return x + offset


def merged(x: Tensor, groups: int, cuts: list[int], order: random.Random | None = None) -> Moments:
    """The moments of x, added in strips that end at `cuts`."""
    bounds = [0, *cuts, x.shape[2]]
    strips = [x[:, :, top:bottom] for top, bottom in pairwise(bounds) if top < bottom]
    if order:
        order.shuffle(strips)
    moments = Moments(groups)
    for strip in strips:
        moments.add(strip)
    return moments


def expected(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per (image, group), in float64 from the values as stored."""
    variance, mean = torch.var_mean(x.double().reshape(x.shape[0], groups, -1), dim=2, correction=0)
    return mean, variance


def assert_statistics(moments: Moments, x: Tensor, groups: int, tolerance: float) -> None:
    """Mean and deviation within `tolerance` of the deviation."""
    assert moments.mean is not None
    assert moments.m2 is not None
    assert moments.count == x.shape[1] // groups * x.shape[2] * x.shape[3]
    mean, variance = expected(x, groups)
    deviation = variance.sqrt()
    error_of_mean = (moments.mean.double() - mean) / deviation
    torch.testing.assert_close(error_of_mean, torch.zeros_like(mean), rtol=0, atol=tolerance)
    torch.testing.assert_close((moments.m2.double() / moments.count).sqrt(), deviation, rtol=tolerance, atol=0)


CUTS = [[], [1], [10], [1, 2, 3], [5, 10], list(range(1, 11)), [4, 5, 9]]


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize(("batch", "groups"), [(1, 1), (1, 4), (3, 2), (2, 12)])
def test_any_split_gives_the_moments_of_the_whole(batch: int, groups: int, cuts: list[int]) -> None:
    x = hard_plane(batch, 12, 11, 7)
    assert_statistics(merged(x, groups, cuts), x, groups, 1e-12)


def test_the_order_of_the_strips_does_not_matter() -> None:
    x = hard_plane(2, 8, 31, 5)
    for seed in range(20):
        order = random.Random(seed)
        cuts = sorted(order.sample(range(1, 31), order.randrange(1, 30)))
        assert_statistics(merged(x, 4, cuts, order), x, 4, 1e-12)


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
@pytest.mark.parametrize("channels_last", [True, False])
def test_a_strong_offset_costs_float32_nothing(offset: float, channels_last: bool) -> None:
    x = hard_plane(2, 8, 40, 9, offset).float()
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    # A mean of 1e4 is rounded by up to 5e-4, 2e-4 of this plane's deviation; 40 merges may add up ten such roundings.
    # Without the offset 1e-5 is room enough. Strips are small here; what tall ones lose is the next test's matter.
    tolerance = 2e-3 if offset else 1e-5
    for cuts in ([], [1], [7, 20], list(range(1, 40))):
        assert_statistics(merged(x, 4, cuts), x, 4, tolerance)


@pytest.mark.parametrize(
    "channels_last",
    [True, False],
)
def test_tall_strips_are_as_good_as_low_ones(channels_last: bool) -> None:
    # Kernels that add up a strip value by value lose more the larger it is: here 0.07 of the deviation, or 2e-5 of it
    # at an offset of ten deviations. Ten roundings of a mean of 1e4, as above, are 2e-3 of the deviation.
    x = hard_plane(1, 8, 512, 64, 1e4).float()
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    assert_statistics(merged(x, 4, []), x, 4, 2e-3)
    assert_statistics(merged(x, 4, [200]), x, 4, 2e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk_elements", [1, 500, 10_000, 2**20])
def test_16_bit_planes_are_summed_in_more_than_16_bits(
    dtype: torch.dtype, chunk_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The truth is that of the rounded values, for these are what the next layer reads.
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", chunk_elements)
    x = hard_plane(2, 8, 21, 33, offset=100.0).to(dtype)
    for cuts in ([], [1], [5, 6, 13]):
        moments = merged(x, 4, cuts)
        assert moments.mean is not None
        assert moments.mean.dtype == torch.float64
        assert_statistics(moments, x, 4, 1e-5)


def test_devices_without_the_kernel_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROFILES, "cpu", replace(PROFILES["cpu"], channel_moments=False))
    x = hard_plane(2, 8, 21, 9)
    assert_statistics(merged(x, 4, [1, 8]), x, 4, 1e-12)
    assert_statistics(merged(x.bfloat16(), 4, [1, 8]), x.bfloat16(), 4, 1e-5)


def test_images_of_a_batch_keep_their_own_moments() -> None:
    x = hard_plane(3, 8, 9, 5)
    x[1] *= 100
    x[2] += 1000
    together = merged(x, 2, [4])
    assert together.mean is not None
    assert together.m2 is not None
    for image in range(3):
        alone = merged(x[image : image + 1], 2, [4])
        torch.testing.assert_close(together.mean[image], alone.mean[0], rtol=1e-14, atol=0)  # type: ignore[index]
        torch.testing.assert_close(together.m2[image], alone.m2[0], rtol=1e-14, atol=0)  # type: ignore[index]


@pytest.mark.parametrize("eps", [1e-6, 1e-2])
@pytest.mark.parametrize(("channels", "groups"), [(8, 1), (8, 2), (8, 8), (6, 3)])
def test_scale_and_shift_are_group_norm(channels: int, groups: int, eps: float) -> None:
    generator = torch.Generator().manual_seed(6)
    weight, bias = torch.randn(2, channels, generator=generator, dtype=torch.float64).unbind(0)
    x = hard_plane(2, channels, 13, 9)
    for cuts in ([], [1, 6]):
        scale, shift = merged(x, groups, cuts).scale_shift(weight, bias, eps)
        assert scale.shape == shift.shape == (2, channels, 1, 1)
        torch.testing.assert_close(
            x * scale + shift, functional.group_norm(x, groups, weight, bias, eps), rtol=1e-12, atol=1e-12
        )


def test_float32_scale_and_shift_are_group_norm() -> None:
    x = hard_plane(2, 8, 40, 33).float()
    weight, bias = torch.linspace(-1, 2, 8), torch.linspace(3, -1, 8)
    scale, shift = merged(x, 4, [3, 4, 30]).scale_shift(weight, bias, 1e-6)
    truth = functional.group_norm(x.double(), 4, weight.double(), bias.double(), 1e-6)
    # Values up to about 25; float32 rounds each of the three operations to 1.5e-6 of that.
    torch.testing.assert_close((x * scale + shift).double(), truth, rtol=0, atol=2e-5)


def test_constant_planes_stay_finite() -> None:
    # The variance is 0: eps alone keeps the scale finite, and the result is the bias.
    x = torch.full((1, 4, 6, 5), 7.0)
    scale, shift = merged(x, 2, [1, 3]).scale_shift(torch.ones(4), torch.arange(4.0), 1e-6)
    # x * scale is 7000; float32 rounds it to 5e-4.
    torch.testing.assert_close((x * scale + shift).mean(dim=(2, 3)), torch.arange(4.0)[None], rtol=0, atol=2e-3)


def test_a_single_value_per_group() -> None:
    x = torch.tensor([3.0, -5.0], dtype=torch.float64).reshape(1, 2, 1, 1)
    moments = merged(x, 2, [])
    torch.testing.assert_close(moments.mean, torch.tensor([[3.0, -5.0]], dtype=torch.float64), rtol=0, atol=0)
    torch.testing.assert_close(moments.m2, torch.zeros(1, 2, dtype=torch.float64), rtol=0, atol=0)


def test_no_strip_at_all_is_a_mistake_that_is_told() -> None:
    with pytest.raises(RuntimeError, match="moments: expected at least one strip, got none"):
        Moments(2).scale_shift(torch.ones(4), torch.zeros(4), 1e-6)
