"""What a training says before its first batch and behind its last: small pictures, and where its figures stand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning", reason="the trainer's packages are absent: pip install 'exact-vae[train]'")
from exact_vae.__main__ import main
from exact_vae.tests.training.case import curve, with_params, write_config
from exact_vae.vae_model.files.images import write_image
from exact_vae.vae_model.training.crops import random_crop
from exact_vae.vae_model.training.photo_set import small_note
from torch.nn import functional

# Lightning 2.6 itself uses what torch has deprecated.
deprecated = pytest.mark.filterwarnings("ignore::FutureWarning:lightning", "ignore::DeprecationWarning")
pytestmark = [pytest.mark.usefixtures("one_thread"), deprecated]


@pytest.mark.parametrize(
    ("sides", "stages", "text"),
    [
        (
            [94, 150, 94],
            ((0.0, 512, 8),),
            "3 of 3 pictures are smaller than the crop of 512 pixels (shorter sides: 94 t",
        ),
        (
            [94, 94],
            ((0.0, 512, 8),),
            "(shorter sides: 94), hence squares of these sides are enlarged to it, which makes",
        ),
        (
            [511, 511, 512],
            ((0.0, 512, 8),),
            "2 of 3 pictures are smaller than the crop of 512 pixels (shorter sides: 5",
        ),
        ([100, 100], ((0.0, 64, 8), (0.5, 128, 2)), "than the crop of 128 pixels"),
        ([511, 512], ((0.0, 512, 8),), None),
        ([512, 600], ((0.0, 512, 8),), None),
        ([100, 100], ((0.0, 64, 8), (0.5, 96, 2)), None),
    ],
)
def test_most_pictures_must_be_smaller(
    sides: list[int], stages: tuple[tuple[float, int, int], ...], text: str | None
) -> None:
    note = small_note(sides, stages)
    assert (note is None) == (text is None)
    if note is not None:
        assert text is not None
        assert text in note
        remedy = "lower data.crop, or give" if len(stages) == 1 else "lower the crops of data.stages, or give"
        assert remedy in note


def test_small_pictures_are_told_at_the_start_and_are_enlarged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    for number, size in enumerate([(40, 60), (60, 44), (70, 90)]):
        write_image(torch.rand(*size, 3, generator=torch.Generator().manual_seed(number)), photos / f"{number}.png")
    note = (
        "exact-vae: data.train: 2 of 3 pictures are smaller than the crop of 64 pixels (shorter sides: 40 to 44), "
        "hence squares of these sides are enlarged to it, which makes them soft: lower data.crop, or give larger "
        "pictures\n"
    )
    words = ["data.batch_size=1", "output.grids=0"]
    for number, cache in enumerate((2, 0)):  # kept decoded, or known by their headers
        config = write_config(tmp_path / f"run{number}", photos, batches=1)
        assert main(["train", config, "data.crop=64", f"data.cache_gib={cache}", *words]) == 0
        assert capsys.readouterr().err == note
    config = write_config(tmp_path / "small", photos, batches=1)
    assert main(["train", config, "data.crop=40", *words]) == 0
    assert capsys.readouterr().err == ""

    photo = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    crop = random_crop(photo, 64, (1.0,), False, torch.Generator().manual_seed(0))
    enlarged = functional.interpolate(photo[None].float() / 127.5 - 1, size=(64, 64), mode="bilinear", antialias=True)
    torch.testing.assert_close(crop, enlarged[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("monitor", "name"), [(None, ""), ("val/psnr", "PSNR"), ("val/rec_loss", "rec_loss")])
def test_the_figures_of_the_last_check_are_printed(
    monitor: str | None, name: str, tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, photos, with_params(monitor=monitor), batches=2, check_every=1)
    assert main(["train", config]) == 0
    lines = capsys.readouterr().out.splitlines()
    folder = tmp_path / "run"
    assert lines[0] == f"2 of 2 batches; weights in {folder}/vae.safetensors"
    row = curve(tmp_path)[-1]
    figures = f"PSNR {row['psnr']:.2f} dB, SSIM {row['ssim']:.4f}"
    figures += f", rec_loss {row['rec_loss']:.4g}" if name == "rec_loss" else ""
    if monitor is not None:
        best = json.loads((folder / "best.json").read_text())
        unit = f"{best['value']:.2f} dB" if name == "PSNR" else f"{best['value']:.4g}"
        figures += f"; best.safetensors has {name} {unit}"
    assert lines[1:] == [f"judged after batch 2: {figures}; every check stands in {folder / 'training.json'}"]

    assert main(["train", config, "--resume"]) == 0
    again = capsys.readouterr().out.splitlines()
    assert again[:-1] == lines
    assert again[-1] == "nothing was left to train: raise trainer.batches or trainer.epochs to go on"
