"""The training script of the bundled VAE: crops, losses, start values, one short run."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae.vae_model.autoencoder import build_kl
from exact_vae.vae_model.config import SMALL
from exact_vae.vae_model.files.images import write_image
from exact_vae.vae_model.load import load_model
from exact_vae.vae_model.training import train_bundled
from exact_vae.vae_model.training.photos import centre_crop, psnr, random_crops, read_photos


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures of smooth colours, one of them portrait."""
    path = tmp_path_factory.mktemp("photos")
    for number, (height, width) in enumerate([(160, 144), (136, 192), (200, 130)]):
        y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
        write_image(torch.stack([x, y, (x - y).abs() * (number + 1) / 3], dim=2), path / f"{number}.png")
    return path


def test_photos_are_read_sorted_and_folders_without_any_are_refused(folder: Path, tmp_path: Path) -> None:
    photos = read_photos(folder)
    assert [tuple(photo.shape) for photo in photos] == [(3, 160, 144), (3, 136, 192), (3, 200, 130)]
    assert all(photo.dtype == torch.uint8 for photo in photos)
    with pytest.raises(ValueError, match=r"expected a folder of pictures, got .*: name one that holds"):
        read_photos(tmp_path)


def test_random_crops_repeat_with_the_seed_and_stay_in_range(folder: Path) -> None:
    photos = read_photos(folder)
    first = random_crops(photos, 6, 64, torch.Generator().manual_seed(5))
    again = random_crops(photos, 6, 64, torch.Generator().manual_seed(5))
    other = random_crops(photos, 6, 64, torch.Generator().manual_seed(6))
    assert first.shape == (6, 3, 64, 64)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.min() >= -1
    assert first.max() <= 1


def test_centre_crop_takes_the_middle_in_whole_cells() -> None:
    photo = torch.zeros(3, 100, 70, dtype=torch.uint8)
    photo[:, 50, 35] = 255
    crop = centre_crop(photo, 512)
    assert crop.shape == (1, 3, 96, 64)
    assert crop[0, 0, 48, 32] == 1.0
    assert (crop == 1.0).sum() == 3


def test_psnr_of_one_step_of_eight_bits() -> None:
    x = torch.full((1, 3, 8, 8), 1 / 255)  # 128 of 255
    # 20 log10(255) for an error of one step everywhere; below half a step both round to the same.
    assert psnr(x, x + 2 / 255) == pytest.approx(48.1308, abs=1e-3)
    assert psnr(x, x + 0.2 / 255) > 100


def test_the_opponent_axes_are_orthonormal() -> None:
    product = train_bundled.OPPONENT @ train_bundled.OPPONENT.T
    torch.testing.assert_close(product, torch.eye(3), rtol=0, atol=1e-6)  # float32 rounding of three products


def test_the_loss_sees_colour_behind_a_brightness_error() -> None:
    """With a brightness error everywhere, the gradient must still point at the colour error."""
    x = torch.zeros(1, 3, 4, 4)
    y = (x + 0.1 + torch.tensor([0.06, 0.0, -0.04])[:, None, None]).requires_grad_()
    zeros = torch.zeros(1, 2, 1, 1)
    train_bundled.reconstruction_loss(x, y, zeros, zeros).backward()
    assert y.grad is not None
    red, green, blue = y.grad.mean(dim=(0, 2, 3))
    # Taken on red, green and blue, the absolute error would give all three the same gradient.
    assert red > 2 * blue
    assert red > 2 * green.abs()


def test_the_learning_rate_warms_up_and_ends_at_a_hundredth() -> None:
    rates = [train_bundled.learning_rate(step, 1000, 1.0) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01, rel=1e-3)
    assert max(rates) == pytest.approx(rates[99], rel=1e-9)
    assert rates[-1] == pytest.approx(0.01, rel=1e-2)


def test_start_values_leave_the_residual_branches_empty_and_the_posterior_quiet() -> None:
    torch.manual_seed(0)
    model = build_kl(SMALL)
    train_bundled.prepare(model)
    moments, _ = model.encode(torch.rand(1, 3, 32, 32) * 2 - 1, unregularized=True)
    expected = torch.full((1, 16, 4, 4), train_bundled.START_LOGVAR)
    torch.testing.assert_close(moments[:, 16:], expected, rtol=0, atol=0)
    assert all(not block.conv2.weight.any() for block in model.encoder.down[0].block)


def test_a_short_training_learns_and_its_file_loads(folder: Path, tmp_path: Path) -> None:
    options = argparse.Namespace(
        photos=folder, val=folder, out=tmp_path, steps=12, batch=4, crop=32, lr=2e-3, seed=0, evaluate_every=6
    )
    train_bundled.train(options)
    report = json.loads((tmp_path / "training.json").read_text(encoding="utf-8"))
    assert [record["step"] for record in report["curve"]] == [6, 12]
    assert report["curve"][1]["loss"] < report["curve"][0]["loss"]
    loaded = load_model(tmp_path / "exact_vae_small.safetensors", dtype=torch.float32)
    assert loaded.config == SMALL
    assert loaded.stored_dtype == torch.float16
    model: Any = loaded.model
    crops = [centre_crop(photo, 512) for photo in read_photos(folder)]
    with torch.inference_mode():
        scores = [psnr(x, model.decode(model.encode(x))) for x in crops]
    # The file holds the averaged weights in half precision; the report's scores are theirs in single precision.
    assert scores == pytest.approx(report["psnr_db"], abs=0.05)
