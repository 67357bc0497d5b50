"""Photographs as tensors: whole folders, crops that follow from a number, the deterministic middle; start values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from exact_vae.tests.families.table import SMALL
from exact_vae.vae_model.evaluation.metrics import psnr
from exact_vae.vae_model.families.ldm.autoencoder import build_kl
from exact_vae.vae_model.files.images import middle, read_photo, write_image
from exact_vae.vae_model.training.architecture import START_LOGVAR, STARTS
from exact_vae.vae_model.training.config import ConfigError
from exact_vae.vae_model.training.crops import CentreCrops, RandomCrops, Timetable
from exact_vae.vae_model.training.photo_set import PhotoSet, find_pictures
from PIL import Image


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures of smooth colours, one of them portrait."""
    path = tmp_path_factory.mktemp("photos")
    for number, (height, width) in enumerate([(160, 144), (136, 192), (200, 130)]):
        y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
        write_image(torch.stack([x, y, (x - y).abs() * (number + 1) / 3], dim=2), path / f"{number}.png")
    return path


def test_photos_are_read_sorted(folder: Path) -> None:
    photos = [read_photo(path) for path in find_pictures([str(folder)], "data.train")]
    assert [tuple(photo.shape) for photo in photos] == [(3, 160, 144), (3, 136, 192), (3, 200, 130)]
    assert all(photo.dtype == torch.uint8 for photo in photos)


def test_centre_crop_takes_the_middle_in_whole_cells() -> None:
    photo = torch.zeros(3, 100, 70, dtype=torch.uint8)
    photo[:, 50, 35] = 255
    crop = middle(photo, 512)
    assert crop.shape == (3, 96, 64)
    assert crop[0, 48, 32] == 1.0
    assert (crop == 1.0).sum() == 3


def test_psnr_of_one_step_of_eight_bits() -> None:
    x = torch.full((1, 3, 8, 8), 1 / 255)  # 128 of 255
    # 20 log10(255) for an error of one step everywhere; below half a step both round to the same.
    assert float(psnr(x, x + 2 / 255)) == pytest.approx(48.1308, abs=1e-3)
    assert float(psnr(x, x + 0.2 / 255)) > 100


def test_crops_follow_from_their_number_alone(folder: Path) -> None:
    photos = PhotoSet(find_pictures([str(folder)], "data.train"), cache_bytes=2**30)
    crops, again = (RandomCrops(photos, 5, (1.0, 1.5)) for _ in range(2))
    items = [(number, number % 3, 32) for number in range(8)]
    made = [crops[item]["jpg"] for item in items]
    for item, crop in reversed(list(zip(items, made, strict=True))):
        assert torch.equal(again[item]["jpg"], crop)
        assert crop.shape == (3, 32, 32)
        assert float(crop.abs().max()) <= 1
    assert not torch.equal(made[0], made[3])
    assert not torch.equal(RandomCrops(photos, 6)[items[0]]["jpg"], made[0])


def test_lists_and_subfolders_are_searched_and_bad_files_counted(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "bad.png").write_bytes(b"no picture")
    (tmp_path / "list.txt").write_text(f"# two of three\n{folder / '0.png'}\n{folder / '2.png'}\n")
    paths = find_pictures([str(tmp_path / "list.txt"), str(tmp_path / "deep")], "data.train")
    for cache_bytes in (0, 2**30):
        photos = PhotoSet(paths, cache_bytes)
        assert (len(photos), photos.readable, len(paths)) == (2, 2, 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"data.val: expected folders or lists with pictures, got .*empty"):
        find_pictures([str(tmp_path / "empty")], "data.val")


def test_a_file_that_breaks_off_is_replaced_by_another(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "0.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])  # its header is in order
    (tmp_path / "b.png").write_bytes(whole)
    photos = PhotoSet(find_pictures([str(tmp_path)], "data.train"))
    assert RandomCrops(photos, 0)[(0, 0, 16)]["jpg"].shape == (3, 16, 16)
    assert (len(photos), photos.readable) == (2, 1)
    assert CentreCrops(photos, 64, 32)[0].shape == (3, 64, 64)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_pictures_of_every_mode_become_three_channels(tmp_path: Path, mode: str) -> None:
    colour = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8))
    name = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    (colour.convert("L").convert("I;16") if mode == "I;16" else colour.convert(mode)).save(name)
    photo = PhotoSet(find_pictures([str(name)], "data.train"))[0]
    assert photo is not None
    assert (photo.dtype, tuple(photo.shape)) == (torch.uint8, (3, 40, 48))
    with Image.open(name) as stored:
        if mode == "I;16":  # which Pillow's own conversion would cut off instead of scaling
            expected = np.repeat(np.asarray(stored)[..., None] / 257, 3, axis=2)
        else:
            expected = np.asarray(stored.convert("RGB"))
    assert torch.equal(photo, torch.tensor(expected).round().to(torch.uint8).permute(2, 0, 1))


def test_validation_crops_are_the_same_every_time(folder: Path) -> None:
    first, again = (CentreCrops(PhotoSet(find_pictures([str(folder)], "data.val")), 64, 32) for _ in range(2))
    assert [tuple(crop.shape) for crop in (first[n] for n in range(3))] == [(3, 64, 64)] * 3
    for number in (2, 0, 1):
        assert torch.equal(first[number], again[number])
        photo = read_photo(folder / f"{number}.png").float() / 127.5 - 1
        top, left = ((length - 64) // 2 for length in photo.shape[1:])
        assert torch.equal(first[number], photo[:, top : top + 64, left : left + 64])


def test_processes_share_the_crops_of_one_larger_batch() -> None:
    stages = ((0.0, 16, 4), (0.5, 32, 2))
    one = Timetable(stages, 10)
    two = Timetable([(share, size, count // 2) for share, size, count in stages], 10, processes=2)
    for number in range(10):
        expected, size = one.batch(number)
        parts = [two.batch(number, process) for process in range(2)]
        assert [*parts[0][0], *parts[1][0]] == list(expected)
        assert {part[1] for part in parts} == {size}


def test_start_values_leave_the_residual_branches_empty_and_the_posterior_quiet() -> None:
    model = build_kl(SMALL)
    STARTS["skip"](model)
    moments, _ = model.encode(torch.rand(1, 3, 32, 32) * 2 - 1, unregularized=True)
    expected = torch.full((1, 16, 4, 4), START_LOGVAR)
    torch.testing.assert_close(moments[:, 16:], expected, rtol=0, atol=1e-6)
    assert not any(bool(block.conv2.weight.any()) for block in model.modules() if hasattr(block, "conv2"))
