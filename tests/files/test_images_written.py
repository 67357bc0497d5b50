"""Written image files: exact round trips, rounding, and what is refused before anything is written."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from exact_vae.tests.files.test_images import HEIGHT, WIDTH, read
from exact_vae.vae_model.files.images import read_image, write_image


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".tif", ".tiff"])
def test_round_trip_is_exact_to_8_bits(tmp_path: Path, pixels: np.ndarray, suffix: str) -> None:
    x = torch.from_numpy(pixels).float() / 255
    write_image(x, tmp_path / f"a{suffix}")
    assert torch.equal(read_image(tmp_path / f"a{suffix}")[0], x[None])
    write_image(x[None], tmp_path / f"a{suffix}")
    assert torch.equal(read_image(tmp_path / f"a{suffix}")[0], x[None])


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp"])
def test_lossy_formats_come_close(tmp_path: Path, suffix: str) -> None:
    ramp = torch.linspace(0, 1, 64)[:, None, None].expand(64, 48, 3)
    write_image(ramp, tmp_path / f"a{suffix}", quality=95)
    # Measured at most 2 steps of 255 on a smooth ramp; lossy formats promise nothing exact.
    torch.testing.assert_close(read_image(tmp_path / f"a{suffix}")[0][0], ramp, rtol=0, atol=4 / 255)
    write_image(ramp, tmp_path / f"b{suffix}", quality=30)
    assert (tmp_path / f"b{suffix}").stat().st_size < (tmp_path / f"a{suffix}").stat().st_size


def test_rounding_and_clamping(tmp_path: Path) -> None:
    steps = torch.tensor([-0.5, 0.0, 0.499, 0.501, 1.499, 254.501, 255.0, 300.0])
    write_image((steps / 255)[None, :, None].expand(1, 8, 3), tmp_path / "a.png")
    assert read(tmp_path / "a.png")[0][0, :, 0].round().tolist() == [0, 0, 0, 1, 1, 255, 255, 255]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types(tmp_path: Path, dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=dtype, requires_grad=True)[None, :, None].expand(1, 4, 3)
    write_image(x, tmp_path / "a.png")
    assert read(tmp_path / "a.png")[0][0, :, 0].round().tolist() == [0, 64, 128, 255]


def test_an_unknown_suffix_lists_the_known(tmp_path: Path) -> None:
    known = re.escape(".png, .jpg, .jpeg, .webp, .tif, .tiff")
    with pytest.raises(ValueError, match=rf"^image: expected a file name ending in {known}, got '.*a\.bmp': "):
        write_image(torch.zeros(2, 2, 3), tmp_path / "a.bmp")
    with pytest.raises(ValueError, match="expected a file name ending in"):
        write_image(torch.zeros(2, 2, 3), tmp_path / "a")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_a_number_keeps_the_old_file(tmp_path: Path, value: float) -> None:
    (tmp_path / "a.png").write_text("old")
    x = torch.zeros(4, 4, 3)
    x[3, 3, 2] = value
    with pytest.raises(ValueError, match=r"^image: expected finite numbers, got NaN or infinity: "):
        write_image(x, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "x", [torch.zeros(2, 4, 4, 3), torch.zeros(3, 4, 4), torch.zeros(0, 4, 3), torch.zeros(4, 4, 3).int()]
)
def test_a_wrong_shape_or_type(tmp_path: Path, x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"^image: expected floats \(H, W, 3\) for one image, got torch\."):
        write_image(x, tmp_path / "a.png")


def test_limits_of_the_formats(tmp_path: Path) -> None:
    wide = torch.zeros(1, 16384, 3)
    with pytest.raises(ValueError, match=r"at most 16383 pixels a side, got 16384x1 .*: use \.png"):
        write_image(wide, tmp_path / "a.webp")
    write_image(wide, tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"^quality: expected 1 to 100, got 0"):
        write_image(wide, tmp_path / "a.jpg", quality=0)


def test_an_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^output: expected a writable folder"):
        write_image(torch.zeros(2, 2, 3), tmp_path / "file" / "a.png")
