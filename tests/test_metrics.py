"""PSNR, SSIM and MS-SSIM: hand values, scikit-image, and the papers' formulas written another way."""

import numpy as np
import pytest
import torch
from exact_vae.vae_model.training.metrics import SCALE_WEIGHTS, ms_ssim, psnr, round_to_8_bits, ssim
from torch import Tensor, nn


def pictures(count: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Smooth random pictures, and the same with noise that grows from one to the next."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(count, 3, 6, 5, generator=generator) * 2 - 1
    x = nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(-1, 1)
    strength = torch.linspace(0.02, 0.4, count).view(-1, 1, 1, 1)
    return x, (x + strength * torch.randn(x.shape, generator=generator)).clamp(-1, 1)


def test_rounding_to_8_bits_is_what_a_file_does() -> None:
    x = torch.tensor([-3.0, -1.0, -1 + 0.9 / 255, 0.0, 1.0, 2.0])
    steps = (round_to_8_bits(x) + 1) * 127.5
    # 127.5 lies between two steps; either is right, and torch takes the even one.
    torch.testing.assert_close(steps, torch.tensor([0, 0, 0, 128, 255, 255], dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(round_to_8_bits(round_to_8_bits(x)), round_to_8_bits(x), rtol=0, atol=0)


def test_psnr_of_one_step_of_eight_bits() -> None:
    x = torch.full((3, 3, 8, 8), 1 / 255)  # 128 of 255
    y = x.clone()
    y[0] += 2 / 255  # one step everywhere: 20 log10(255)
    y[1, 0] += 2 / 255  # in one channel of three: 10 log10(3) more
    y[2] += 0.2 / 255  # a tenth of a step: the same after rounding
    expected = torch.tensor([48.130803609, 52.902016156, 168.0], dtype=torch.float64)
    torch.testing.assert_close(psnr(x, y), expected, rtol=0, atol=1e-6)  # digits of the hand values


def test_psnr_of_black_and_white_is_zero() -> None:
    black, white = -torch.ones(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    torch.testing.assert_close(psnr(black, white), torch.zeros(1).double(), rtol=0, atol=1e-12)


def test_similarity_of_two_flat_pictures_is_the_luminance_term() -> None:
    """Without contrast SSIM is (2 a b + C1) / (a^2 + b^2 + C1), and MS-SSIM that to the power of the last weight."""
    a, b, c1 = 0.5, -0.25, 0.0004
    x, y = torch.full((1, 3, 176, 180), a).double(), torch.full((1, 3, 176, 180), b).double()
    luminance = (2 * a * b + c1) / (a * a + b * b + c1)
    torch.testing.assert_close(ssim(x, y), torch.tensor([luminance], dtype=torch.float64), rtol=1e-9, atol=0)
    torch.testing.assert_close(ms_ssim(x, y), torch.zeros(1).double(), rtol=0, atol=0)  # below 0 counts as 0
    luminance = (2 * a * 0.25 + c1) / (a * a + 0.25 * 0.25 + c1)
    expected = torch.tensor([luminance ** SCALE_WEIGHTS[-1]], dtype=torch.float64)
    torch.testing.assert_close(ms_ssim(x, -y), expected, rtol=1e-9, atol=0)  # rounding of the window's weights


def test_ssim_is_scikit_image_s() -> None:
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    x, y = pictures(4, 50, 61)
    expected = [
        structural_similarity(
            a.double().numpy(),
            b.double().numpy(),
            data_range=2.0,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(x, y, strict=True)
    ]
    assert min(expected) < 0.5 < 0.9 < max(expected)  # both ends of the scale are seen
    torch.testing.assert_close(
        ssim(x, y), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9
    )  # float64 rounding


def reference_ms_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """One channel, with scipy's Gaussian filter instead of convolutions."""
    ndimage = pytest.importorskip("scipy.ndimage")

    def blur(image: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(image, 1.5, truncate=3.5)[5:-5, 5:-5]

    result = 1.0
    for number, weight in enumerate(SCALE_WEIGHTS):
        a, b = blur(x), blur(y)
        contrast = (2 * (blur(x * y) - a * b) + 0.0036) / (blur(x * x) - a * a + blur(y * y) - b * b + 0.0036)
        luminance = (2 * a * b + 0.0004) / (a * a + b * b + 0.0004)
        result *= float((contrast * (luminance if number == 4 else 1)).mean()) ** weight
        height, width = (side // 2 * 2 for side in x.shape)
        x, y = (z[:height, :width].reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3)) for z in (x, y))
    return result


def test_ms_ssim_follows_its_formula() -> None:
    x, y = pictures(3, 183, 176)
    expected = [
        sum(reference_ms_ssim(a[c].double().numpy(), b[c].double().numpy()) for c in range(3)) / 3
        for a, b in zip(x, y, strict=True)
    ]
    assert expected[0] > 0.97 > 0.8 > expected[2]
    torch.testing.assert_close(
        ms_ssim(x, y), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9
    )  # float64 rounding


def test_equal_pictures_are_as_alike_as_can_be() -> None:
    x, _ = pictures(2, 176, 176)
    ones = torch.ones(2).double()
    torch.testing.assert_close(ssim(x, x), ones, rtol=0, atol=1e-12)
    torch.testing.assert_close(ms_ssim(x.half(), x.half()), ones, rtol=0, atol=1e-12)
    assert psnr(x, x).tolist() == [168.0, 168.0]


def test_both_similarities_have_finite_gradients() -> None:
    """Also where a scale counts as 0."""
    x, y = pictures(1, 176, 176)
    for metric, other in ((ssim, y), (ms_ssim, y), (ms_ssim, -x)):
        z = other.clone().requires_grad_()
        metric(x, z).sum().backward()
        assert z.grad is not None
        assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize(("metric", "least"), [(psnr, 1), (ssim, 11), (ms_ssim, 176)])
def test_pictures_that_do_not_fit_are_refused_in_one_line(metric: object, least: int) -> None:
    assert callable(metric)
    fits = torch.zeros(1, 3, least, least)
    metric(fits, fits)
    for x, y in (
        (fits, fits[:, :, :-1]),
        (fits[:, :1], fits[:, :1]),
        (fits[0], fits[0]),
        (fits[..., 1:], fits[..., 1:]),
    ):
        with pytest.raises(ValueError, match=rf"at least {least}, got \(.*\) and \(.*\): crop them alike$"):
            metric(x, y)
