"""`exact-vae sample`: pictures of the prior that follow from their seeds, whatever else is asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import load_vae, save
from exact_vae.__main__ import main
from exact_vae.vae_model.checkpoint.save import to_layout
from exact_vae.vae_model.families.tiny.model import AutoencoderTiny
from exact_vae.vae_model.files.images import read_image
from safetensors.torch import load_file, save_file
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_sample_is_the_decoded_noise_of_its_seed(tmp_path: Path, small_file: Path) -> None:
    words = ["--vae", str(small_file), "--size", "40x24", "--dtype", "float32", "--device", "cpu", "--quiet"]
    assert main(["sample", "-o", str(tmp_path / "a"), "--count", "3", "--seed", "5", *words]) == 0
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [f"sample_{seed}.png" for seed in (5, 6, 7)]
    z = torch.randn(1, 4, 3, 5, generator=torch.Generator().manual_seed(6))
    expected = load_vae(small_file, device="cpu", dtype="float32").decode(z)
    found, _ = read_image(tmp_path / "a" / "sample_6.png")
    torch.testing.assert_close(found, expected, rtol=0, atol=0.5 / 255 + 1e-4)  # eight bits


def test_seeds_do_not_depend_on_how_many_there_are(tmp_path: Path, small_file: Path) -> None:
    words = ["--vae", str(small_file), "--size", "16x16", "--device", "cpu", "--quiet"]
    main(["sample", "-o", str(tmp_path / "a"), "--count", "2", "--seed", "1", *words])
    main(["sample", "-o", str(tmp_path / "b"), "--count", "1", "--seed", "2", *words])
    one, other = (tmp_path / name / "sample_2.png" for name in ("a", "b"))
    assert one.read_bytes() == other.read_bytes()
    assert one.read_bytes() != (tmp_path / "a" / "sample_1.png").read_bytes()


def test_a_sheet_holds_them_all(tmp_path: Path, small_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--vae", str(small_file), "--size", "16x24", "--count", "3", "--device", "cpu", "--json"]
    assert main(["sample", "-o", str(tmp_path / "a"), "--sheet", str(tmp_path / "all.png"), *words]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["command"], told["seed"], len(told["outputs"])) == ("sample", 0, 4)
    sheet, _ = read_image(tmp_path / "all.png")
    assert tuple(sheet.shape) == (1, 2 * 24 + 4, 2 * 16 + 4, 3)
    for number, (top, left) in enumerate([(0, 0), (0, 20), (28, 0)]):
        one, _ = read_image(tmp_path / "a" / f"sample_{number}.png")
        assert torch.equal(sheet[:, top : top + 24, left : left + 16], one)
    assert bool((sheet[:, 28:, 20:] == 1).all())


def test_sides_round_up_to_whole_cells(tmp_path: Path, small_file: Path) -> None:
    words = ["--vae", str(small_file), "--size", "17x8", "--count", "1", "--device", "cpu", "--quiet"]
    assert main(["sample", "--sheet", str(tmp_path / "a.png"), *words]) == 0
    assert tuple(read_image(tmp_path / "a.png")[0].shape) == (1, 8, 24, 3)


@pytest.mark.parametrize("name", ["s1.png", "S1.JPG", "new/s1.webp"])
@pytest.mark.parametrize("count", [[], ["--count", "1"]])
def test_a_picture_s_name_is_the_one_sample(
    tmp_path: Path, small_file: Path, name: str, count: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--vae", str(small_file), "--size", "16x24", "--seed", "3", "--dtype", "float32", "--device", "cpu"]
    assert main(["sample", "-o", str(tmp_path / name), *count, *words]) == 0
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]
    assert capsys.readouterr().out.split() == [str(tmp_path / name)]
    z = torch.randn(1, 4, 3, 2, generator=torch.Generator().manual_seed(3))
    expected = load_vae(small_file, device="cpu", dtype="float32").decode(z)
    bound = 0.5 / 255 + 1e-4 if name.endswith("png") else 0.5  # the others lose some
    torch.testing.assert_close(read_image(tmp_path / name)[0], expected, rtol=0, atol=bound)


def test_folders_may_have_any_name(tmp_path: Path, small_file: Path) -> None:
    (tmp_path / "s.png").mkdir()
    words = ["--vae", str(small_file), "--size", "8x8", "--device", "cpu", "--quiet"]
    for name in ("s.png", "run_1.5", "plain"):
        assert main(["sample", "-o", str(tmp_path / name), *words]) == 0
        assert len(list((tmp_path / name).iterdir())) == 4


@pytest.mark.parametrize(
    ("asked", "drawn"), [("65x65", "72x72"), ("64x65", "64x72"), ("7x16", "8x16"), ("64x72", "64x72")]
)
def test_what_is_drawn_is_told(
    tmp_path: Path, small_file: Path, asked: str, drawn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--vae", str(small_file), "--size", asked, "--device", "cpu"]
    assert main(["sample", "-o", str(tmp_path / "a.png"), *words]) == 0
    line = f"exact-vae: --size: expected whole cells of 8 pixels, got {asked}: drawing {drawn}"
    assert (line in capsys.readouterr().err.splitlines()) == (asked != drawn)
    height, width = read_image(tmp_path / "a.png")[0].shape[1:3]
    assert f"{width}x{height}" == drawn
    assert main(["sample", "-o", str(tmp_path / "a.png"), *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["size"] == drawn


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["-o", "a.png", "--count", "2"], "-o: expected a folder for 2 samples, got a.png: name a folder"),
        (["-o", "a.png", "--sheet", "b.png"], "-o: expected a folder for 4 samples, got a.png: name a folder"),
        (["-o", "a.gif"], "image: expected a file name ending in .png, .jpg, .jpeg, .webp, .tif, .tiff, got 'a.gif'"),
        ([], "sample: expected -o FOLDER or --sheet FILE.png, got neither"),
        (["-o", "a", "--count", "0"], "--count: expected at least 1, got 0"),
        (["-o", "a", "--seed", "-1"], "--seed: expected at least 0, got -1"),
        (["-o", "a", "--size", "512"], "--size: expected WxH in pixels, got '512'"),
        (["-o", "a", "--size", "0x8"], "--size: expected WxH in pixels, got '0x8'"),
        (["--sheet", "a.jpg"], "--sheet: expected a name ending in .png"),
        (["-o", "a", "--vae", "nowhere.safetensors"], "nowhere.safetensors"),
    ],
)
def test_mistakes_end_in_one_line(
    words: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sample", *words]) == 2
    printed = capsys.readouterr().err
    assert text in printed
    assert printed.count("\n") == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_whose_latents_which_variant_and_which_part(tmp_path: Path, small_model: nn.Module) -> None:
    """As for the other commands: noise is in the latents that are named; a folder's variant; a checkpoint's part."""
    torch.manual_seed(0)
    widths: dict[str, Any] = {f"{half}_block_out_channels": (8, 8) for half in ("encoder", "decoder")}
    tiny = AutoencoderTiny(**widths, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)).eval()
    save(tiny, tmp_path / "tiny.safetensors")
    save(small_model, tmp_path / "small.safetensors")
    convert = ["convert", str(tmp_path / "small.safetensors"), "-o", str(tmp_path / "folder"), "--layout", "diffusers"]
    assert main([*convert, "--quiet"]) == 0
    stored = tmp_path / "folder" / "diffusion_pytorch_model.safetensors"
    shutil.copy(stored, stored.with_name("diffusion_pytorch_model.fp16.safetensors"))
    save_file({k: 0.5 * v for k, v in load_file(stored).items()}, stored)  # the plain one is another model
    plain = small_model.state_dict()
    torch.save({"model": {k: 0.5 * v for k, v in plain.items()}, "ema": plain}, tmp_path / "parts.pt")
    cases: list[tuple[str, dict[str, str]]] = [
        ("tiny.safetensors", {"latent_format": "sd"}),
        ("tiny.safetensors", {"latent_format": "sdxl"}),
        ("folder", {"variant": "fp16"}),
        ("parts.pt", {"part": "ema"}),
        ("parts.pt", {"part": "model"}),
    ]
    pictures: list[torch.Tensor] = []
    for number, (name, chosen) in enumerate(cases):
        options = [word for key, value in chosen.items() for word in (f"--{key.replace('_', '-')}", value)]
        words = ["--vae", str(tmp_path / name), "--size", "16x16", "--count", "1", "--device", "cpu", "--quiet"]
        assert main(["sample", "-o", str(tmp_path / str(number)), "--dtype", "float32", *words, *options]) == 0
        vae = load_vae(tmp_path / name, device="cpu", dtype="float32", **chosen)
        cells = 16 // vae.upscale_ratio
        noise = torch.randn(1, 4, cells, cells, generator=torch.Generator().manual_seed(0))
        pictures.append(read_image(tmp_path / str(number) / "sample_0.png")[0])
        torch.testing.assert_close(pictures[-1], vae.decode(noise), rtol=0, atol=0.5 / 255 + 1e-4)  # eight bits
    assert not torch.equal(pictures[0], pictures[1])
    whole = load_vae(tmp_path / "small.safetensors", device="cpu", dtype="float32")  # of which the variant is a copy
    noise = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pictures[2], whole.decode(noise), rtol=0, atol=0.5 / 255 + 1e-4)
    assert not torch.equal(pictures[3], pictures[4])


def test_two_halves_are_one_vae(tmp_path: Path) -> None:
    """By `--vae` twice or joined by a comma, as for the other commands."""
    torch.manual_seed(0)
    widths: dict[str, Any] = {f"{half}_block_out_channels": (8, 8) for half in ("encoder", "decoder")}
    tiny = AutoencoderTiny(**widths, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)).eval()
    halves = [str(tmp_path / f"{half}.safetensors") for half in ("encoder", "decoder")]
    for name, path in zip(("encoder", "decoder"), halves, strict=True):
        save_file(to_layout(tiny, f"taesd-{name}"), path)
    for number, named in enumerate((["--vae", halves[0], "--vae", halves[1]], ["--vae", ",".join(halves)])):
        words = ["--size", "16x16", "--device", "cpu", "--quiet", "-o", str(tmp_path / f"{number}.png")]
        assert main(["sample", *named, *words]) == 0
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "1.png").read_bytes()
