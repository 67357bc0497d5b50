"""Pixels that are not 0..1, or of other channels than the VAE: a note where one reading is possible, else one line."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import VAE, InputError
from exact_vae.tests.families.table import ROWS, hints, random_model
from exact_vae.vae_model.checkpoint.save import to_layout
from exact_vae.vae_model.runs.checks import check_latents, check_pixels
from torch import Tensor

pytestmark = pytest.mark.usefixtures("one_thread")
LOGGER = "exact_vae.vae_model.notes"


def picture(low: float, high: float, channels: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    """Two images (24 x 32) whose values reach just from `low` to `high`."""
    x = torch.rand(2, 24, 32, channels, generator=torch.Generator().manual_seed(1))
    x = low + (high - low) * (x - x.min()) / (x.max() - x.min())
    return x.to(dtype)


def notes_of(vae: VAE, x: Tensor, caplog: pytest.LogCaptureFixture, **options: Any) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, LOGGER):  # what Python shows without being told to
        vae.encode(x, **options)
    return [record.getMessage() for record in caplog.records if record.name == LOGGER]


@pytest.mark.parametrize(
    ("low", "high", "found", "remedy"),
    [
        (-1, 1, "-1 to 1", "for values in -1..1 pass (pixels + 1) / 2"),
        (-0.75, 0.25, "-0.75 to 0.25", "for values in -1..1 pass (pixels + 1) / 2"),
        (0, 255, "0 to 255", "for values in 0..255 pass pixels / 255"),
        (0, 4, "0 to 4", "scale them"),
        (-3, 8, "-3 to 8", "scale them"),
    ],
)
@pytest.mark.parametrize("method", ["exact", "untiled", "blend"])
def test_values_that_are_surely_not_in_0_to_1(
    small_vae: VAE, caplog: pytest.LogCaptureFixture, low: float, high: float, found: str, remedy: str, method: str
) -> None:
    notes = notes_of(small_vae, picture(low, high), caplog, method=method)
    assert notes == [f"pixels: expected values in 0..1, got {found}: {remedy}"]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.02, 1.02), (-0.4, 1.4), (0.5, 0.6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_values_of_0_to_1_also_resampled_ones_are_quiet(
    small_vae: VAE, caplog: pytest.LogCaptureFixture, low: float, high: float, dtype: torch.dtype
) -> None:
    assert notes_of(small_vae, picture(low, high, dtype=dtype), caplog) == []


def test_one_image_of_a_batch_is_enough(small_vae: VAE, caplog: pytest.LogCaptureFixture) -> None:
    x = picture(0, 1)
    x[1, 5, 6, 2] = -1
    assert notes_of(small_vae, x, caplog) == [
        "pixels: expected values in 0..1, got -1 to 1: for values in -1..1 pass (pixels + 1) / 2"
    ]


def test_alpha_is_left_out_with_one_note(small_vae: VAE, caplog: pytest.LogCaptureFixture) -> None:
    x = picture(0, 1, channels=4)
    assert notes_of(small_vae, x, caplog) == ["pixels: expected 3 channels, got 4: the last, alpha, is left out"]
    assert small_vae.encode(x).equal(small_vae.encode(x[..., :3]))


@pytest.mark.parametrize("channels", [1, 2, 5, 7, 16])
def test_channels_that_can_be_read_in_no_way(small_vae: VAE, channels: int) -> None:
    line = (
        rf"^pixels: expected \(batch, height, width, 3\) in 0..1, got \(2, 24, 32, {channels}\): "
        "convert the image to 3 channels$"
    )
    with pytest.raises(InputError, match=line):
        small_vae.encode(picture(0, 1, channels=channels))


def test_channels_before_rows_are_told_as_such(small_vae: VAE) -> None:
    for channels in (1, 3, 4):
        with pytest.raises(InputError, match="expected channels last") as caught:
            small_vae.encode(picture(0, 1, channels=channels).movedim(-1, 1))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_is_found_as_before(value: float, dtype: torch.dtype) -> None:
    x = picture(0, 1, dtype=dtype)
    x[1, 3, 4, 0] = value
    kind = "NaN" if value != value else "infinity"
    with pytest.raises(InputError, match=f"expected finite numbers, got {kind} in item 1 of 2: check what made"):
        check_pixels(x, 3, 8)
    with pytest.raises(InputError, match=f"expected finite numbers, got {kind} in item 1 of 2: sample again"):
        check_latents(x.movedim(-1, 1), 3)
    x[1, 0, 0, 0], x[1, 0, 0, 1] = float("nan"), float("inf")
    with pytest.raises(InputError, match="got NaN in item 1"):
        check_pixels(x, 3, 8)


def test_pixels_that_want_a_gradient(small_vae: VAE) -> None:
    x = picture(0, 1)
    assert small_vae.encode(x.clone().requires_grad_()).equal(small_vae.encode(x))


def test_a_vae_of_four_channels_takes_four(caplog: pytest.LogCaptureFixture) -> None:
    from dataclasses import replace

    from exact_vae import load_vae

    row = ROWS["SD1, SD2, SDXL"]
    model = random_model(replace(row, config=replace(row.config, in_channels=4)))  # type: ignore[arg-type]
    vae = load_vae(to_layout(model, "ldm"), config=hints(row.config), device="cpu", dtype="float32")
    assert vae.input_channels == 4
    assert notes_of(vae, picture(0, 1, channels=4), caplog) == []
    assert notes_of(vae, picture(0, 1, channels=5), caplog) == [
        "pixels: expected 4 channels, got 5: the last, alpha, is left out"
    ]


def test_images_of_files_are_in_range(small_vae: VAE, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    from exact_vae.vae_model.files.images import read_image, write_image

    write_image(picture(0, 1)[0], tmp_path / "a.png")
    assert notes_of(small_vae, read_image(tmp_path / "a.png")[0], caplog) == []
