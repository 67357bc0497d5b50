"""The command line where nothing can be done (exit code 2, before any work), `info`, and the installed program."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import save
from exact_vae.__main__ import main
from exact_vae.vae_model.families.table import all_layouts
from exact_vae.vae_model.families.tiny.model import AutoencoderTiny
from exact_vae.vae_model.files.latents import write_latent
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The one line of a call that ends with exit code 2 and without loading a VAE."""

    def call(*arguments: object, loads: bool = False) -> str:
        if not loads:
            monkeypatch.setattr("exact_vae.model_management.loader.load_vae", lambda *a, **k: pytest.fail("loaded"))
        assert main([str(argument) for argument in arguments]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert len(printed.err.splitlines()) == 1
        return printed.err.rstrip("\n")

    return call


def test_an_output_under_a_file_is_found_before_any_work(tmp_path: Path, picture: Path, refused: Any) -> None:
    (tmp_path / "file").touch()
    for output in (tmp_path / "file" / "sub", tmp_path / "file" / "z.safetensors", tmp_path / "file"):
        text = refused("encode", picture, "-o", output)
        assert text.startswith(f"exact-vae: output: expected a writable folder, got {tmp_path / 'file'}")
        assert text.endswith("; choose another folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "file"]


def test_one_file_for_several_inputs(tmp_path: Path, picture: Path, refused: Any) -> None:
    output = tmp_path / "out.safetensors"
    assert refused("encode", picture, picture, "-o", output) == (
        f"exact-vae: -o: expected a folder for 2 inputs, got {output}: name a folder"
    )
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            ["--memory", "plenty"],
            "memory: expected an amount such as 2GiB, 800MiB or 2147483648, got 'plenty': write a",
        ),
        (["--memory", "0"], "memory: expected at least 1 byte and less than 2^63, got '0': give a positive amount"),
        (["--method", "fast"], "method: expected one of exact, untiled, blend, got 'fast': choose one of these"),
    ],
)
def test_bad_options(tmp_path: Path, picture: Path, refused: Any, options: list[str], text: str) -> None:
    assert refused("encode", picture, "-o", tmp_path / "out", *options).startswith(f"exact-vae: {text}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("output", ["out.bmp", "out.avi"])
def test_an_image_format_that_cannot_be_written(tmp_path: Path, refused: Any, output: str) -> None:
    write_latent(torch.zeros(1, 4, 2, 2), tmp_path / "z.latent")
    text = refused("decode", tmp_path / "z.latent", "-o", tmp_path / output)
    assert text.startswith("exact-vae: -o: expected a name ending in .png, ")
    assert ".gif, got '.bmp': change the ending" in refused(
        "decode", tmp_path / "z.latent", "-o", tmp_path, "--format", "bmp"
    )


def test_an_image_format_is_checked_before_the_folder_is_made(tmp_path: Path, refused: Any) -> None:
    write_latent(torch.zeros(1, 4, 2, 2), tmp_path / "z.latent")
    refused("decode", tmp_path / "z.latent", "-o", tmp_path / "new", "--format", "bmp")
    assert not (tmp_path / "new").exists()


def test_latents_are_not_written_over_pictures(tmp_path: Path, picture: Path, refused: Any) -> None:
    before = picture.read_bytes()
    text = refused("encode", picture, "-o", picture)
    assert text == (
        f"exact-vae: latent: expected a file name ending in .safetensors or .latent, got {str(picture)!r}: "
        "change the ending"
    )
    assert picture.read_bytes() == before


def test_two_halves_and_inputs_behind_them(tmp_path: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    halves = [tmp_path / "encoder.safetensors", tmp_path / "decoder.safetensors"]
    for half in halves:
        save(tiny, half, layout=f"taesd-{half.stem}")
    output = tmp_path / "z.safetensors"
    arguments = ["encode", "--vae", halves[0], "--vae", halves[1], picture, "-o", output, "--quiet", "--device", "cpu"]
    assert main([str(argument) for argument in arguments]) == 0
    assert output.is_file()


def test_info_refuses_what_cannot_be_loaded(tmp_path: Path, small_file: Path, refused: Any) -> None:
    state = load_file(small_file)
    del state["decoder.mid.block_2.conv2.weight"]
    save_file(state, tmp_path / "less.safetensors")
    assert "missing decoder.mid.block_2.conv2.weight" in refused("info", tmp_path / "less.safetensors")


def test_a_vae_that_is_not_there(tmp_path: Path, picture: Path, refused: Any) -> None:
    absent = tmp_path / "none.safetensors"
    line = f"exact-vae: {absent}: expected a weight file, found none there: check the path"
    assert refused("encode", picture, "-o", tmp_path / "out", "--vae", absent, loads=True) == line
    assert refused("info", absent, loads=True) == line


def test_a_device_or_dtype_that_is_not_there(tmp_path: Path, picture: Path, small_file: Path, refused: Any) -> None:
    for option in (["--device", "warp"], ["--dtype", "int8"]):
        text = refused("encode", picture, "-o", tmp_path / "out", "--vae", small_file, *option, loads=True)
        assert f"got {option[1]!r}" in text


@pytest.mark.parametrize(
    "arguments", [["paint"], ["encode"], ["encode", "-o", "a.safetensors"], ["info"], ["completion", "fish"]]
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: exact-vae" in capsys.readouterr().err


def make_tiny() -> nn.Module:
    widths, blocks = (8, 8), (1, 1)
    return AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks,
    )


@pytest.mark.parametrize("layout", dict.fromkeys(row.name for row in all_layouts() if row.family in ("kl", "tiny")))
def test_info_of_every_layout(
    tmp_path: Path, small_model: nn.Module, capsys: pytest.CaptureFixture[str], layout: str
) -> None:
    tiny = layout.startswith("taesd")
    path = tmp_path / "vae.safetensors"
    save(make_tiny() if tiny else small_model, path, layout=layout, dtype=torch.float16)
    assert main(["info", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    halves = {"taesd-encoder": "encoder", "taesd-decoder": "decoder"}.get(layout, "encoder and decoder")
    wanted = {
        "file": str(path),
        "family": "TAESD tiny autoencoder" if tiny else "ldm KL autoencoder",
        "layout": layout,
        "prefix": "none",
        "halves": halves,
        "latent channels": 4,
        "pixels per latent cell": 2 if tiny else 8,
        "stored as": "float16",
    }
    assert {key: facts[key] for key in wanted} == wanted
    if not tiny:
        assert facts["parameters"] == sum(tensor.numel() for tensor in small_model.parameters())
        assert facts["configuration"]["num_groups"] == 8
        assert facts["configuration"]["decoder"]["widths"] == [32, 64, 64, 64]
    assert ("untiled decode, 1024 x 1024, 16-bit" in facts) == ("decoder" in halves)
    assert main(["info", str(path), "--all"]) == 0
    rows = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert {key: value.strip() for key, value in rows.items() if key in wanted} == {
        key: str(value) for key, value in wanted.items()
    }
    assert main(["info", str(path), "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_info_of_two_halves_of_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_tiny()
    for half in ("encoder", "decoder"):
        save(model, tmp_path / f"{half}.safetensors", layout=f"taesd-{half}")
    assert main(["info", str(tmp_path / "encoder.safetensors"), str(tmp_path / "decoder.safetensors"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["layout"] == "taesd-encoder + taesd-decoder"
    assert facts["halves"] == "encoder and decoder"


def start(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`python -m exact_vae` as the installed package runs it: from another folder, without PYTHONPATH."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-m", "exact_vae", *map(str, arguments)]
    return subprocess.run(
        command, cwd=os.sep, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture(scope="module")
def installed() -> None:
    probe = [sys.executable, "-c", "import importlib.util as u; raise SystemExit(u.find_spec('exact_vae') is None)"]
    if subprocess.run(probe, cwd=os.sep, check=False).returncode:
        pytest.skip("exact_vae is not installed here")


@pytest.mark.usefixtures("installed")
def test_the_program_encodes_and_describes(tmp_path: Path, picture: Path, small_file: Path) -> None:
    done = start("encode", picture, "-o", tmp_path / "z.safetensors", "--vae", small_file, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "z.safetensors").is_file()
    done = start("info", tmp_path / "z.safetensors")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"exact-vae: {tmp_path / 'z.safetensors'}: expected an autoencoder, found latents, ")
    assert len(done.stderr.splitlines()) == 1
