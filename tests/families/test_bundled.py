"""The VAE that ships with the project: size, architecture, quality on photographs, and its demo."""

from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import load_vae
from exact_vae.nodes import demo
from exact_vae.vae_model.bundled import BUNDLED_FILE
from exact_vae.vae_model.checkpoint.load import load_model
from exact_vae.vae_model.evaluation.metrics import psnr
from exact_vae.vae_model.evaluation.photos import centre_crop, read_photos
from exact_vae.vae_model.families.group_norm import GroupNorm
from exact_vae.vae_model.families.ldm.config import SMALL
from exact_vae.vae_model.families.ldm.layers import AttnBlock
from exact_vae.vae_model.files.images import read_image
from torch import nn


def test_it_is_at_most_8_megabytes_of_half_precision() -> None:
    assert BUNDLED_FILE.stat().st_size <= 8_000_000
    assert load_model(BUNDLED_FILE).stored_dtype == torch.float16


def test_it_keeps_what_exactness_is_for() -> None:
    vae = load_vae()
    assert vae.loaded.config == SMALL
    kinds = [type(layer) for layer in vae.first_stage_model.modules()]
    assert kinds.count(AttnBlock) == 2
    assert kinds.count(GroupNorm) > 20


def test_it_reconstructs_photographs(shared: Path) -> None:
    """Every sixth photograph here, at the bar that all 24 must reach; the card has the figure of all."""
    photos = read_photos(shared / "photos" / "val")[::6]
    model: Any = load_model(BUNDLED_FILE, dtype=torch.float32).model
    crops = [centre_crop(photo, 512) for photo in photos]
    with torch.inference_mode():
        scores = [float(psnr(x, model.decode(model.encode(x)))) for x in crops]
    assert sum(scores) / len(scores) >= 26.0


def test_the_card_states_what_is_shipped() -> None:
    card = (BUNDLED_FILE.parent / "README.md").read_text(encoding="utf-8")
    parameters = sum(p.numel() for p in load_model(BUNDLED_FILE).model.parameters())
    assert f"{parameters:,}" in card
    for word in ("Architecture", "Data", "Steps", "PSNR", "Licence"):
        assert word in card


def test_the_demo_prints_its_table_and_writes_two_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from exact_vae.vae_model.files.images import write_image

    torch.manual_seed(0)
    coarse = torch.rand(1, 3, 12, 9)
    picture = nn.functional.interpolate(coarse, size=(200, 144), mode="bilinear")[0].movedim(0, -1)
    write_image(picture, tmp_path / "photo.png")
    monkeypatch.setattr(demo, "TILE", 64)
    monkeypatch.setattr(demo, "REPEATS", 1)
    demo.run_demo(tmp_path / "photo.png", tmp_path / "out")
    printed = capsys.readouterr().out
    for line in ("decode, untiled", "decode, exact", "decode, blended 64-px tiles"):
        assert line in printed
    exact_line = next(line for line in printed.splitlines() if line.startswith("decode, exact"))
    assert float(exact_line.split("max ")[1].split(" of 1")[0]) < 2e-5
    reconstruction, _ = read_image(tmp_path / "out" / "reconstruction.png")
    assert reconstruction.shape == (1, 200, 144, 3)
    comparison, _ = read_image(tmp_path / "out" / "comparison.png")
    assert comparison.shape[2] == 4 * 144 + 3 * 8


def test_the_demo_s_own_photo_is_there_without_a_download() -> None:
    pytest.importorskip("skimage")
    pixels, name = demo._photo(None)
    assert pixels.shape == (1, 512, 512, 3)
    assert 0 <= float(pixels.min()) < float(pixels.max()) <= 1
    assert "public domain" in name


def test_the_demo_refuses_a_bad_picture_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "no.png").write_text("not a picture")
    with pytest.raises(ValueError, match=r"no\.png") as caught:
        demo.run_demo(tmp_path / "no.png", tmp_path / "out")
    assert "\n" not in str(caught.value)
