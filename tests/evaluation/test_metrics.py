"""PSNR, SSIM and MS-SSIM: hand values, scikit-image, and the papers' formulas written another way."""

import numpy as np
import pytest
import torch
from exact_vae.vae_model.evaluation.metrics import SCALE_WEIGHTS, ms_ssim, psnr, round_to_8_bits, ssim
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
    a, b, c1 = 0.4, 0.6, 0.0001  # of brightness in 0..1
    x, y = (torch.full((1, 3, 176, 180), 2 * level - 1, dtype=torch.float64) for level in (a, b))
    luminance = (2 * a * b + c1) / (a * a + b * b + c1)
    assert luminance == pytest.approx(0.923, abs=1e-3)
    torch.testing.assert_close(ssim(x, y), torch.tensor([luminance], dtype=torch.float64), rtol=1e-9, atol=0)
    expected = torch.tensor([luminance ** SCALE_WEIGHTS[-1]], dtype=torch.float64)
    torch.testing.assert_close(ms_ssim(x, y), expected, rtol=1e-9, atol=0)  # rounding of the window's weights


def test_a_negative_scale_counts_as_zero() -> None:
    x, _ = pictures(1, 176, 176)
    torch.testing.assert_close(ms_ssim(x, -x), torch.zeros(1).double(), rtol=0, atol=0)


def scikit_image_ssim(x: Tensor, y: Tensor) -> Tensor:
    """Of images in -1..1, on 0..1, with the paper's Gaussian window."""
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    options = {"data_range": 1.0, "channel_axis": 0, "gaussian_weights": True, "sigma": 1.5}
    x, y = ((image.double() + 1) / 2 for image in (x, y))
    values = [
        structural_similarity(a.numpy(), b.numpy(), use_sample_covariance=False, **options)
        for a, b in zip(x, y, strict=True)
    ]
    return torch.tensor(values, dtype=torch.float64)


def test_ssim_is_scikit_image_s() -> None:
    x, y = pictures(4, 50, 61)
    expected = scikit_image_ssim(x, y)
    assert expected.min() < 0.5 < 0.9 < expected.max()  # both ends of the scale are seen
    torch.testing.assert_close(ssim(x, y), expected, rtol=0, atol=1e-9)  # float64 rounding


def damaged_pictures() -> tuple[Tensor, Tensor]:
    """A picture by formula, three times, (3, 3, 192, 208) in 0..1; with noise, darker, and nothing but grey."""
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (192, 208)), indexing="ij")
    planes = [0.5 + 0.45 * torch.sin(columns / (7 + 3 * c) + c) * torch.cos(rows / (11 - 2 * c)) for c in range(3)]
    x = torch.stack(planes)
    numbers = (torch.arange(x.numel()) * 2654435761 + 1) % 2**32  # scattered evenly
    noisy = (x + 0.2 * (numbers.double() / 2**32 - 0.5).view(x.shape)).clamp(0, 1)
    return torch.stack([x] * 3), torch.stack([noisy, 0.6 * x, torch.full_like(x, 0.5)])


GOLDEN_SSIM = (0.623866510665, 0.804137820831, 0.260691254887)
GOLDEN_MS_SSIM = (0.972184318557, 0.873197131578, 0.044328230730)
"""Of `damaged_pictures`: piq 0.8.0, `ssim(x, y, downsample=False)` and `multi_scale_ssim(x, y)`, in float64; SSIM of
scikit-image 0.26.0 has the same twelve digits. pytorch-msssim 1.0.0, whose window is float32, has
0.623868, 0.804138, 0.260697 and 0.972184, 0.873197, 0.044330."""


def test_similarities_are_those_of_three_other_packages() -> None:
    x, y = damaged_pictures()
    for metric, golden in ((ssim, GOLDEN_SSIM), (ms_ssim, GOLDEN_MS_SSIM)):
        expected = torch.tensor(golden, dtype=torch.float64)
        torch.testing.assert_close(metric(2 * x - 1, 2 * y - 1), expected, rtol=0, atol=1e-10)  # the digits above
    others = scikit_image_ssim(2 * x - 1, 2 * y - 1)
    torch.testing.assert_close(others, torch.tensor(GOLDEN_SSIM, dtype=torch.float64), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("package", "names", "options", "tolerance"),
    [
        (
            "piq",
            ("ssim", "multi_scale_ssim"),
            ({"downsample": False, "reduction": "none"}, {"reduction": "none"}),
            1e-9,
        ),
        ("pytorch_msssim", ("ssim", "ms_ssim"), ({"data_range": 1, "size_average": False},) * 2, 1e-5),
    ],
)
def test_similarities_are_those_of_an_installed_package(
    package: str, names: tuple[str, str], options: tuple[dict[str, object], ...], tolerance: float
) -> None:
    """float64 rounding for piq; the window of pytorch-msssim is float32."""
    module = pytest.importorskip(package, reason=f"{package} is not installed; the golden values stand for it")
    x, y = damaged_pictures()
    for metric, name, more in zip((ssim, ms_ssim), names, options, strict=True):
        expected = getattr(module, name)(x, y, **more)
        torch.testing.assert_close(metric(2 * x - 1, 2 * y - 1), expected.double(), rtol=0, atol=tolerance)


def reference_ms_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """One channel in 0..1, with scipy's Gaussian filter instead of convolutions."""
    ndimage = pytest.importorskip("scipy.ndimage")

    def blur(image: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(image, 1.5, truncate=3.5)[5:-5, 5:-5]

    result = 1.0
    for number, weight in enumerate(SCALE_WEIGHTS):
        a, b = blur(x), blur(y)
        contrast = (2 * (blur(x * y) - a * b) + 0.0009) / (blur(x * x) - a * a + blur(y * y) - b * b + 0.0009)
        luminance = (2 * a * b + 0.0001) / (a * a + b * b + 0.0001)
        result *= float((contrast * (luminance if number == 4 else 1)).mean()) ** weight
        height, width = (side // 2 * 2 for side in x.shape)
        x, y = (z[:height, :width].reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3)) for z in (x, y))
    return result


def test_ms_ssim_follows_its_formula() -> None:
    x, y = pictures(3, 183, 176)
    expected = [
        sum(reference_ms_ssim(*((z[c].double().numpy() + 1) / 2 for z in (a, b))) for c in range(3)) / 3
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
        (fits, fits[:, :1]),
        (fits[0], fits[0]),
        (fits[..., 1:], fits[..., 1:]),
    ):
        with pytest.raises(ValueError, match=rf"at least {least}, got \(.*\) and \(.*\): crop them alike$"):
            metric(x, y)
