"""`python3 run.py demo`: its table, its pictures, and what it refuses."""

from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from exact_vae.vae_model.files.images import read_image, write_image
from torch import nn


@pytest.fixture(scope="module")
def demo(bench: SimpleNamespace) -> ModuleType:
    """One of the benchmark's files."""
    return bench.demo


def test_the_demo_prints_its_table_and_writes_two_pictures(
    demo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_the_demo_s_own_photo_is_there_without_a_download(demo: ModuleType) -> None:
    pytest.importorskip("skimage")
    pixels, name = demo._photo(None)
    assert pixels.shape == (1, 512, 512, 3)
    assert 0 <= float(pixels.min()) < float(pixels.max()) <= 1
    assert "public domain" in name


def test_the_demo_refuses_a_bad_picture_in_one_line(demo: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "no.png").write_text("not a picture")
    with pytest.raises(ValueError, match=r"no\.png") as caught:
        demo.run_demo(tmp_path / "no.png", tmp_path / "out")
    assert "\n" not in str(caught.value)
