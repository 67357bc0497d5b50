"""The command line as people type it first: no output named, a folder, the wrong kind of file, files that are there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exact_vae import __version__, load_vae
from exact_vae.__main__ import main
from exact_vae.vae_model.files.images import read_image
from exact_vae.vae_model.files.latents import read_latent, write_latent
from PIL import Image


@pytest.fixture
def run(small_file: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """main() with the small VAE on the CPU: (exit code, what it printed, what it said went wrong)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        options = ["--vae", str(small_file), "--device", "cpu", "--dtype", "float32"]
        code = main([*map(str, arguments), *options])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def save_picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 24, 3), dtype=np.uint8)).save(path)
    return path


def save_latent(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(exist_ok=True)
    write_latent(torch.randn(1, 4, 2, 3, generator=torch.Generator().manual_seed(seed)), path)
    return path


def test_without_arguments_there_is_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["exact-vae"])
    assert main() == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.startswith("usage: exact-vae")
    assert all(f"    {command} " in printed.out for command in ("encode", "decode", "plan", "train", "info"))


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"exact-vae {__version__}\n"


def test_outputs_stand_beside_their_inputs(tmp_path: Path, run: Any, small_file: Path) -> None:
    picture = save_picture(tmp_path / "x" / "photo.jpg")
    other = save_picture(tmp_path / "y" / "photo.png", seed=1)
    assert run("encode", picture, other)[0] == 0
    vae = load_vae(small_file, device="cpu", dtype="float32")
    for source in (picture, other):
        assert torch.equal(read_latent(source.with_suffix(".safetensors")), vae.encode(read_image(source)[0]))
    picture.unlink()
    assert run("decode", tmp_path / "x" / "photo.safetensors", "--format", "webp")[0] == 0
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["photo.safetensors", "photo.webp"]


def test_a_name_that_nobody_gave_replaces_nothing(tmp_path: Path, run: Any) -> None:
    """Encoded and decoded again, photo.png would be the reconstruction and the photograph gone."""
    picture = save_picture(tmp_path / "photo.png")
    before = picture.read_bytes()
    assert run("encode", picture)[0] == 0
    fine = save_latent(tmp_path / "fine.latent")
    code, _, err = run("decode", tmp_path / "photo.safetensors", fine)
    assert code == 1
    assert picture.read_bytes() == before
    assert err.splitlines()[0] == (
        f"exact-vae: {tmp_path / 'photo.safetensors'}: output: expected no such file yet, found {picture}: "
        "name it with -o to replace it"
    )
    assert (tmp_path / "fine.png").is_file()
    assert run("decode", tmp_path / "photo.safetensors", "-o", picture)[0] == 0
    assert picture.read_bytes() != before


def test_folders_are_their_files(tmp_path: Path, run: Any) -> None:
    for number, name in enumerate(["b.png", "a.JPG", "c.webp"]):
        save_picture(tmp_path / "in" / name, seed=number)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    (tmp_path / "in" / "deeper").mkdir()
    code, out, _ = run("encode", tmp_path / "in", "-o", tmp_path / "z", "--json")
    assert code == 0
    assert [Path(row["input"]).name for row in json.loads(out)["files"]] == ["a.JPG", "b.png", "c.webp"]
    (tmp_path / "z" / "model.safetensors").write_bytes(b"no latent")
    code, out, _ = run("decode", tmp_path / "z", "--json")
    assert code == 0
    assert [Path(row["outputs"][0]).name for row in json.loads(out)["files"]] == ["a.png", "b.png", "c.png"]


def test_a_folder_without_inputs(tmp_path: Path, run: Any) -> None:
    code, _, err = run("encode", tmp_path)
    assert code == 2
    assert err.startswith("exact-vae: encode: expected a folder with pictures (.png, ")
    assert err.endswith(f"found none in {tmp_path}: name another folder\n")
    save_picture(tmp_path / "a.png")
    code, _, err = run("encode", tmp_path, "-o", tmp_path / "z.safetensors")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "expected a folder for a folder of inputs" in err


def test_the_wrong_kind_is_told_by_its_name(tmp_path: Path, run: Any, small_file: Path) -> None:
    picture, latent = save_picture(tmp_path / "a.png"), save_latent(tmp_path / "z.latent")
    lines = {
        ("decode", picture): f"decode: expected a latent, got the picture {picture}: did you mean encode?",
        ("encode", latent): f"encode: expected a picture, got the latent {latent}: did you mean decode?",
        ("encode", small_file): (
            f"encode: expected a picture, got the weight file {small_file}: give a VAE with --vae {small_file}"
        ),
    }
    for (command, source), line in lines.items():
        code, _, err = run(command, source, "-o", tmp_path / "out")
        assert code == 2
        assert err.splitlines()[0] == f"exact-vae: {line}"


def test_no_clobber_keeps_what_is_there(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (save_picture(tmp_path / f"{name}.png") for name in "ab")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.safetensors").write_bytes(b"kept")
    code, out, _ = run("encode", first, second, "-o", tmp_path / "out", "--no-clobber")
    assert code == 0
    assert out.splitlines()[0] == f"{first} -> {tmp_path / 'out' / 'a.safetensors'} (0.00 s; kept as it was)"
    assert (tmp_path / "out" / "a.safetensors").read_bytes() == b"kept"
    assert read_latent(tmp_path / "out" / "b.safetensors").shape == (1, 4, 2, 3)
    monkeypatch.setattr("exact_vae.model_management.loader.load_vae", lambda *a, **k: pytest.fail("loaded"))
    assert run("encode", first, second, "-o", tmp_path / "out", "--no-clobber")[0] == 0


def test_no_clobber_knows_the_numbered_files_of_a_batch(tmp_path: Path, run: Any) -> None:
    write_latent(torch.randn(2, 4, 2, 3, generator=torch.Generator().manual_seed(0)), tmp_path / "z.latent")
    assert run("decode", tmp_path / "z.latent")[0] == 0
    before = (tmp_path / "z_00001.png").stat().st_mtime_ns
    assert run("decode", tmp_path / "z.latent", "--no-clobber")[0] == 0
    assert (tmp_path / "z_00001.png").stat().st_mtime_ns == before


def test_convert_keeps_what_is_there(tmp_path: Path, small_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "theirs.safetensors"
    target.write_bytes(b"kept")
    words = ["convert", str(small_file), "-o", str(target), "--layout", "diffusers", "--no-clobber"]
    assert main(words) == 0
    assert target.read_bytes() == b"kept"
    assert "kept as it was" in capsys.readouterr().out


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_bar_is_for_terminals_and_is_not_filled_by_a_failure(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    code, _, err = run("encode", tmp_path / "absent.png", "-o", tmp_path / "z.safetensors")
    assert code == 2
    assert ("encode:   0%" in err) is is_terminal
    assert "100%" not in err


@pytest.mark.parametrize(("words", "name"), [(["--memory", "1"], "1"), (["--memory", "0.5"], "0.5")])
def test_a_bare_number_of_memory_is_refused(tmp_path: Path, run: Any, words: list[str], name: str) -> None:
    code, _, err = run("encode", save_picture(tmp_path / "a.png"), *words)
    assert (code, err) == (2, f"exact-vae: memory: expected an amount with its unit, got '{name}': {name}GiB?\n")


def test_info_is_a_card_and_all_of_it_on_request(small_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(small_file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 10
    card = {name.strip(): value.strip() for name, value in (line.split("  ", 1) for line in lines)}
    assert card["family"] == "ldm KL autoencoder, ldm layout"
    assert card["latents"] == "(batch, 4, height / 8, width / 8), raw mean of the posterior"
    assert card["weights"].endswith(" parameters, float32, encoder and decoder")
    assert "resident" in card["exact decode"]
    assert main(["info", str(small_file), "--all"]) == 0
    everything = capsys.readouterr().out
    assert "configuration.decoder.widths" in everything
    assert "exact encode" in everything
