"""Norm, activation and moments by the kernels in C against PyTorch's operations in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from exact_vae.vae_model.kernels.cpu import compiler, strips
from torch import Tensor
from torch.nn import functional

pytestmark = pytest.mark.skipif(strips.kernels() is None, reason="no C compiler here, or it was told not to be used")
CHANNELS_LAST = torch.channels_last
SHAPES = pytest.mark.parametrize("shape", [(1, 128, 5, 7), (2, 96, 1, 1), (3, 16, 4, 130), (1, 512, 9, 33)], ids=str)


def values(*shape: int, seed: int = 0, offset: float = 0.0) -> Tensor:
    """Noise on a gradient with an offset, channels innermost."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x += torch.linspace(-3, 5, shape[-1], dtype=torch.float64) + offset
    return x.float().contiguous(memory_format=CHANNELS_LAST)


@SHAPES
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("one", [True, False])
def test_norm_and_activation(shape: tuple[int, ...], silu: bool, one: bool) -> None:
    """Into a tensor of its own, and into the middle of a window with borders."""
    x = values(*shape)
    scale, shift = (values(1 if one else shape[0], shape[1], 1, 1, seed=seed) for seed in (1, 2))
    expected = x.double() * scale.double() + shift.double()
    expected = functional.silu(expected) if silu else expected
    window = torch.full((shape[0], shape[1], shape[2] + 2, shape[3] + 2), 7.0).contiguous(memory_format=CHANNELS_LAST)
    for target in (torch.empty_like(x), window[:, :, 1:-1, 1:-1]):
        assert strips.normalise(target, x, scale, shift, silu=silu)
        limit = 2**-22 * expected.abs() + 2e-6
        assert bool(((target.double() - expected).abs() <= limit).all())
    window[:, :, 1:-1, 1:-1] = 7.0
    assert bool((window == 7.0).all())


def test_activation_of_every_size_of_value() -> None:
    """Within three roundings of the result, down to where results vanish."""
    sizes = torch.logspace(-30, 38, 16 * 4096)
    x = torch.cat([sizes, -sizes, torch.linspace(-90, 90, 16 * 4096)]).view(1, -1, 16, 16).permute(0, 3, 1, 2)
    target = torch.empty_like(x)
    assert strips.normalise(target, x, torch.ones(1, 16, 1, 1), torch.zeros(1, 16, 1, 1), silu=True)
    expected = functional.silu(x.double())
    assert bool(((target.double() - expected).abs() <= 3 * 2**-24 * expected.abs() + 1e-35).all())


def test_activation_of_what_is_no_number() -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0]).repeat(16)[None, :, None, None]
    target = torch.empty_like(x)
    assert strips.normalise(target, x, torch.ones(1, 64, 1, 1), torch.zeros(1, 64, 1, 1), silu=True)
    torch.testing.assert_close(target, functional.silu(x), equal_nan=True)


@SHAPES
@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_moments(shape: tuple[int, ...], offset: float) -> None:
    """To 1e-6 of the deviation, also where the offset is 10,000 times as large."""
    for image in values(*shape, offset=offset).split(1):
        found = strips.channel_moments(image)
        assert found is not None
        variance, mean = torch.var_mean(image.double(), dim=(2, 3), correction=0)
        deviation = variance.sqrt()
        assert found[0].shape == found[1].shape == mean.shape
        assert bool(((found[0] - mean).abs() <= 1e-6 * deviation + 1e-12).all())
        assert bool(((found[1].sqrt() - deviation).abs() <= 1e-6 * deviation).all())


def test_moments_with_an_outlier_at_the_corner() -> None:
    image = values(1, 32, 40, 50)
    image[:, :, 0, 0] = 3000.0
    found = strips.channel_moments(image)
    assert found is not None
    variance, mean = torch.var_mean(image.double(), dim=(2, 3), correction=0)
    torch.testing.assert_close(found[0], mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[1], variance, rtol=1e-6, atol=0)


def test_others_are_left_to_pytorch() -> None:
    one = torch.ones(1, 32, 1, 1)
    odd, planar, half = values(1, 33, 4, 4), values(1, 32, 4, 4).contiguous(), values(1, 32, 4, 4).half()
    for x in (odd, planar, half, values(1, 32, 4, 8)[..., ::2]):
        assert not strips.normalise(torch.empty_like(x), x, one, one, silu=True)
        assert strips.channel_moments(x) is None
    assert strips.channel_moments(values(1, 32, 4, 8)[..., :4]) is None


WRONG = [("0.693359375f", "0.693259375f"), ("+ 127", "+ 126"), ("known * share", "share")]


@pytest.mark.parametrize(("right", "wrong"), WRONG)
def test_the_trial_notices_a_wrong_factor(right: str, wrong: str, tmp_path: Path) -> None:
    text = Path(compiler.__file__).with_name("strips.c").read_text(encoding="utf-8")
    assert right in text
    for number, source in enumerate((text, text.replace(right, wrong))):
        path = tmp_path / f"{number}.c"
        path.write_text(source)
        assert (compiler.load(path, strips._declare, strips._is_right) is None) == (number == 1)
