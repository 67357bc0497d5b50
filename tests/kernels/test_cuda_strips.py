"""Kernels of our own against PyTorch's operations in float64."""

from __future__ import annotations

import pytest
import torch
from exact_vae.vae_model.kernels.cuda import strips
from torch import Tensor

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.usefixtures("inference"),
]
DEVICE = "cuda"
ROUNDING = {torch.float32: 2**-23, torch.float16: 2**-10, torch.bfloat16: 2**-7}
DTYPES = pytest.mark.parametrize("dtype", ROUNDING)
CHANNELS_LAST = torch.channels_last


def values(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Noise on a gradient with an offset, channels innermost."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x += torch.linspace(-3, 5, shape[-1], dtype=torch.float64)
    return x.to(DEVICE, dtype).contiguous(memory_format=CHANNELS_LAST)


@DTYPES
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("shape", [(1, 128, 5, 7), (2, 96, 1, 1), (3, 8, 4, 130), (1, 512, 9, 33)], ids=str)
def test_norm_and_activation(shape: tuple[int, ...], silu: bool, dtype: torch.dtype) -> None:
    x = values(*shape, dtype=dtype)
    scale, shift = (values(shape[0], shape[1], 1, 1, dtype=torch.float32, seed=seed) for seed in (1, 2))
    expected = x.double() * scale.double() + shift.double()
    expected = expected * torch.sigmoid(expected) if silu else expected
    # Into a tensor of its own, and into the middle of a window with borders.
    window = torch.full((shape[0], shape[1], shape[2] + 2, shape[3] + 2), 7.0, dtype=dtype, device=DEVICE)
    window = window.contiguous(memory_format=CHANNELS_LAST)
    for target in (torch.empty_like(x), window[:, :, 1:-1, 1:-1]):
        assert strips.normalise(target, x, scale, shift, silu=silu)
        limit = ROUNDING[dtype] * expected.abs() + 4e-6
        assert bool(((target.double() - expected).abs() <= limit).all())
    window[:, :, 1:-1, 1:-1] = 7.0
    assert bool((window == 7.0).all())


@DTYPES
@pytest.mark.parametrize("shape", [(1, 64, 5, 7), (2, 512, 3, 40), (3, 8, 1, 1), (1, 3, 4, 5)], ids=str)
def test_copies_of_pixels_that_lie_apart(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = values(shape[0], shape[1], shape[2], shape[3] + 1, dtype=dtype)[..., 1:]
    out = torch.zeros(shape[0], shape[1], 2 * shape[2], 2 * shape[3], dtype=dtype, device=DEVICE)
    out = out.contiguous(memory_format=CHANNELS_LAST)
    expected = out.clone()
    expected[:, :, 1::2, ::2] = x
    strips.copy_pixels(out[:, :, 1::2, ::2], x)
    assert torch.equal(out, expected)


@DTYPES
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((1, 128, 1, 1), 32), ((2, 64, 33, 65), 4), ((1, 512, 16, 40), 32), ((1, 96, 7, 50), 1), ((3, 8, 100, 101), 8)],
    ids=str,
)
def test_moments_of_several_strips(shape: tuple[int, ...], groups: int, dtype: torch.dtype) -> None:
    parts = [values(*shape, dtype=dtype, seed=seed) + seed for seed in range(3)]
    mean, m2 = (torch.zeros(shape[0], groups, dtype=torch.float64, device=DEVICE) for _ in range(2))
    count = 0
    for part in parts:
        assert strips.can_add_moments(part)
        count = strips.add_moments(part, count, mean, m2)
    whole = torch.cat([part.double() for part in parts], dim=2).unflatten(1, (groups, -1)).flatten(2)
    assert count == whole.shape[2]
    expected = whole.mean(dim=2)
    torch.testing.assert_close(mean, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(m2, (whole - expected[:, :, None]).square().sum(dim=2), rtol=2e-6, atol=1e-9)


def test_moments_keep_their_digits_far_from_zero() -> None:
    x = (values(1, 32, 64, 64, dtype=torch.float32) * 1e-3 + 1000).contiguous(memory_format=CHANNELS_LAST)
    mean, m2 = (torch.zeros(1, 4, dtype=torch.float64, device=DEVICE) for _ in range(2))
    strips.add_moments(x, 0, mean, m2)
    whole = x.double().unflatten(1, (4, -1)).flatten(2)
    torch.testing.assert_close(
        m2[0], (whole - whole.mean(dim=2, keepdim=True)).square().sum(dim=2)[0], rtol=1e-3, atol=0
    )


def test_tensors_that_do_not_fit_are_refused() -> None:
    odd = values(1, 12, 4, 4, dtype=torch.float16)  # not whole vectors
    assert not strips.can_add_moments(odd)
    assert not strips.can_add_moments(values(1, 16, 4, 4, dtype=torch.float64))
    assert not strips.can_add_moments(values(1, 16, 4, 4, dtype=torch.float32)[:, :, :, 1:])
    assert not strips.can_add_moments(values(1, 16, 4, 4, dtype=torch.float32).contiguous())
    one = torch.ones(1, 12, 1, 1, device=DEVICE)
    assert not strips.normalise(torch.empty_like(odd), odd, one, one, silu=True)


@DTYPES
@pytest.mark.parametrize("keys", [1, 7, 256, 1000, 4096])
def test_softmax_in_parts(keys: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(keys)
    parts = [(torch.randn(13, keys, generator=generator) * 3).to(DEVICE) for _ in range(3)]
    largest, total, worth = (torch.full((13,), value, device=DEVICE) for value in (float("-inf"), 0.0, 0.0))
    sums = torch.zeros(13, dtype=torch.float64, device=DEVICE)
    for part in parts:
        scores, weights = part.clone(), torch.empty(13, keys, dtype=dtype, device=DEVICE)
        assert strips.softmax_part(scores, weights, (largest, total, worth), 0.3)
        sums = sums * worth.double() + weights.double().sum(dim=1)
    scaled = torch.cat(parts, dim=1).double() * 0.3
    torch.testing.assert_close(largest.double(), scaled.amax(dim=1), rtol=1e-6, atol=1e-6)
    expected = torch.exp2(scaled - scaled.amax(dim=1, keepdim=True)).sum(dim=1)
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(sums, expected, rtol=4 * ROUNDING[dtype] + 1e-5, atol=0)
