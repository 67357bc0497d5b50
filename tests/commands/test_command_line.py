"""The command line in this process: what it writes, that it equals the library, and what one bad input of many does."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exact_vae import VAE
from exact_vae.__main__ import main
from exact_vae.commands import inputs
from exact_vae.vae_model.files import images as image_files
from exact_vae.vae_model.files.images import read_image
from exact_vae.vae_model.files.latents import read_latent, write_latent
from PIL import Image
from safetensors.torch import load_file, save_file

WIDTH, HEIGHT = 26, 17  # cropped to 24 x 16, three cells by two


@pytest.fixture
def run(small_file: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """main() with the small VAE on the CPU: (exit code, what it printed, what it said went wrong)."""

    def call(command: str, *arguments: object) -> tuple[int, str, str]:
        options = [] if command == "info" else ["--vae", str(small_file), "--device", "cpu", "--dtype", "float32"]
        code = main([command, *map(str, arguments), *options])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def save_picture(path: Path, mode: str = "RGB", seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    if mode == "I;16":
        Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257).save(path)
    else:
        Image.fromarray(pixels).convert(mode).save(path)
    return path


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("a.png", "RGB"),
        ("a.jpg", "RGB"),
        ("a.jpeg", "L"),
        ("a.webp", "RGB"),
        ("a.tiff", "RGB"),
        ("a.png", "L"),
        ("a.png", "P"),
        ("a.png", "I;16"),
        ("a.tif", "CMYK"),
        ("a.png", "RGBA"),
    ],
)
def test_encode_and_decode_equal_the_library(tmp_path: Path, run: Any, small_vae: VAE, name: str, mode: str) -> None:
    picture = save_picture(tmp_path / name, mode)
    expected = small_vae.encode(read_image(picture)[0])
    code, out, err = run("encode", picture, "-o", tmp_path / "z.safetensors")
    assert code == 0
    assert err.count("cropped to") <= 1  # of the call above; the command itself says it in its line
    notes = "alpha channel dropped; " if mode == "RGBA" else ""
    assert out.startswith(f"{picture} -> {tmp_path / 'z.safetensors'} (")
    assert out.endswith(f" s; {notes}cropped to 24 x 16, whole cells of 8 pixels)\n")
    stored = load_file(tmp_path / "z.safetensors")
    assert set(stored) == {"latent_tensor", "latent_format_version_0"}
    assert torch.equal(stored["latent_tensor"], expected)
    assert stored["latent_tensor"].shape == (1, 4, 2, 3)

    code, out, err = run("decode", tmp_path / "z.safetensors", "-o", tmp_path / "out.png", "--quiet")
    assert (code, out, err) == (0, "", "")
    image_files.write_image(small_vae.decode(stored["latent_tensor"]), tmp_path / "wanted.png")
    assert (tmp_path / "out.png").read_bytes() == (tmp_path / "wanted.png").read_bytes()


def latent(seed: int = 0, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 4, 2, 3, generator=torch.Generator().manual_seed(seed))


def test_one_broken_input_of_ten(tmp_path: Path, run: Any) -> None:
    paths = [save_picture(tmp_path / f"{number}.png", seed=number) for number in range(1, 11)]
    paths[6].write_bytes(paths[6].read_bytes()[:60])
    code, out, err = run("encode", *paths, "-o", tmp_path / "out", "--quiet")
    assert (code, out) == (1, "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        f"{number}.safetensors" for number in range(1, 11) if number != 7
    )
    lines = err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"exact-vae: image: expected a complete image, got {paths[6]}: save or copy it again")
    assert lines[1] == f"exact-vae: 1 of 10 failed: {paths[6]}"
    assert not torch.equal(read_latent(tmp_path / "out/6.safetensors"), read_latent(tmp_path / "out/8.safetensors"))


def test_bad_latents_are_errors_of_their_own_file(tmp_path: Path, run: Any) -> None:
    write_latent(latent(), tmp_path / "good.latent")
    write_latent(latent() * torch.nan, tmp_path / "nan.latent")
    write_latent(torch.zeros(1, 16, 2, 2), tmp_path / "flux.latent")
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    names = ["nan.latent", "flux.latent", "model.safetensors", "absent.latent", "good.latent"]
    paths = [tmp_path / name for name in names]
    code, _, err = run("decode", *paths, "-o", tmp_path / "out", "--quiet")
    assert code == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.png"]
    assert err.splitlines() == [
        f"exact-vae: {paths[0]}: latents: expected finite numbers, got NaN in item 0 of 1: "
        "sample again or lower the guidance",
        f"exact-vae: {paths[1]}: latents: expected 4 channels for this VAE, got 16: "
        "use the VAE that belongs to the model",
        f"exact-vae: latent: expected the key latent_tensor, got weight in {paths[2]}: is this a model file?",
        f"exact-vae: latent: expected a file, got {paths[3]}: no such file",
        f"exact-vae: 4 of 5 failed: {', '.join(map(str, paths[:4]))}",
    ]


def test_json_tells_all_and_nothing_else_is_printed(tmp_path: Path, run: Any) -> None:
    good, bad = save_picture(tmp_path / "good.png", "RGBA"), tmp_path / "bad.png"
    code, out, err = run("encode", good, bad, "-o", tmp_path / "out", "--json")
    assert code == 1
    assert err == f"exact-vae: image: expected a file, got {bad}: no such file\n"
    report = json.loads(out)
    assert (report["command"], report["method"]) == ("encode", "exact")
    first, second = report["files"]
    assert first.pop("seconds") >= 0
    assert first == {
        "input": str(good),
        "outputs": [str(tmp_path / "out" / "good.safetensors")],
        "shape": [1, 4, 2, 3],
        "notes": ["alpha channel dropped", "cropped to 24 x 16, whole cells of 8 pixels"],
        "error": None,
    }
    assert (second["outputs"], second["shape"]) == ([], None)
    assert second["error"] == f"image: expected a file, got {bad}: no such file"


def test_a_bar_and_one_line_per_file_without_quiet(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    paths = [save_picture(tmp_path / f"{number}.png") for number in range(2)]
    code, out, err = run("encode", *paths, "-o", tmp_path / "out")
    assert code == 0
    assert len(out.splitlines()) == 2
    assert "encode: 100%" in err
    assert "2/2" in err


def test_equal_stems_are_numbered_and_none_is_lost(tmp_path: Path, run: Any) -> None:
    sources: list[Path] = []
    for number, name in enumerate(["x/a.png", "y/a.png", "a_2.png", "a.tif", "A.png", "b.png"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        sources.append(save_picture(tmp_path / name, seed=number))
    code, out, _ = run("encode", *sources, "-o", tmp_path / "out", "--json")
    assert code == 0
    written = [Path(row["outputs"][0]).name for row in json.loads(out)["files"]]
    assert written == [
        f"{stem}.safetensors" for stem in ("a", "a_2", "a_2_2", "a_3", "A_4", "b")
    ]  # cases are not told apart, because some file systems do not
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(written)


@pytest.mark.parametrize("target", ["out.png", "out"])
def test_batches_become_numbered_files(tmp_path: Path, run: Any, small_vae: VAE, target: str) -> None:
    write_latent(latent(batch=3), tmp_path / "z.latent")
    code, out, _ = run("decode", tmp_path / "z.latent", "-o", tmp_path / target, "--json")
    assert code == 0
    folder, stem = (tmp_path, "out") if target == "out.png" else (tmp_path / "out", "z")
    paths = [folder / f"{stem}_0000{number}.png" for number in (1, 2, 3)]
    assert json.loads(out)["files"][0]["outputs"] == [str(path) for path in paths]
    wanted = small_vae.decode(latent(batch=3))
    for path, image in zip(paths, wanted, strict=True):
        # Eight bits per channel: rounding to the nearest of 255 steps.
        torch.testing.assert_close(read_image(path)[0][0], image, rtol=0, atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize(("ending", "kind"), [("jpg", "JPEG"), ("webp", "WEBP"), (".TIFF", "TIFF"), ("png", "PNG")])
def test_formats_of_a_folder(tmp_path: Path, run: Any, ending: str, kind: str) -> None:
    write_latent(latent(), tmp_path / "z.latent")
    assert run("decode", tmp_path / "z.latent", "-o", tmp_path / "out", "--format", ending)[0] == 0
    (path,) = (tmp_path / "out").iterdir()
    with Image.open(path) as image:
        assert (image.format, image.size) == (kind, (24, 16))


def test_methods_and_memory_reach_the_run(tmp_path: Path, run: Any, small_vae: VAE) -> None:
    z = torch.randn(1, 4, 10, 10, generator=torch.Generator().manual_seed(3))
    write_latent(z, tmp_path / "z.latent")
    needed = small_vae.memory_used_decode((1, 4, 8, 8), torch.float32)
    assert (
        run("decode", tmp_path / "z.latent", "-o", tmp_path / "a.png", "--method", "blend", "--memory", needed)[0] == 0
    )
    found, _ = read_image(tmp_path / "a.png")
    wanted = small_vae.decode(z, "blend", memory=needed)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.5 / 255 + 1e-6)  # rounding to 8 bits
    for method, text in (
        ("untiled", "decode to 80 x 80 pixels: expected "),
        ("exact", "80 x 80: expected a budget of "),
    ):
        options = ("-o", tmp_path / "b.png", "--memory", "100KiB", "--method", method)
        code, _, err = run("decode", tmp_path / "z.latent", *options, "--quiet")
        assert code == 2  # nothing was done
        assert len(err.splitlines()) == 1  # the error; a count is told of several
        assert text in err
        assert "got 100 KiB" in err
    assert not (tmp_path / "b.png").exists()


def test_a_limit_changes_the_exact_run_and_not_its_image(tmp_path: Path, run: Any, small_vae: VAE) -> None:
    z = torch.randn(1, 4, 10, 10, generator=torch.Generator().manual_seed(3))
    write_latent(z, tmp_path / "z.latent")
    memory = "2MiB"
    assert run("decode", tmp_path / "z.latent", "-o", tmp_path / "a.png", "--memory", memory)[0] == 0
    wanted = small_vae.decode(z, "untiled")
    torch.testing.assert_close(read_image(tmp_path / "a.png")[0], wanted, rtol=0, atol=0.5 / 255 + 2e-5)
    small_vae.decode(z)
    assert small_vae.last_plan is not None
    assert small_vae.last_plan.peak_bytes > 2 * 2**20  # so that the limit meant something
    small_vae.decode(z, memory=memory)
    assert small_vae.last_plan.peak_bytes <= 2 * 2**20


def test_a_write_that_fails_leaves_no_file(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Image.Image, path: Path, **options: Any) -> None:
        Path(path).write_bytes(b"half an image")
        raise OSError(28, "No space left on device")

    write_latent(latent(), tmp_path / "z.latent")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "z.png").write_bytes(b"the old one")
    monkeypatch.setattr(Image.Image, "save", fail)
    code, _, err = run("decode", tmp_path / "z.latent", "-o", tmp_path / "out")
    assert code == 2
    words = "decode: expected to read or write, got 'No space left on device': check path and free space"
    assert f"exact-vae: {tmp_path / 'z.latent'}: {words}" in err.splitlines()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["z.png"]
    assert (tmp_path / "out" / "z.png").read_bytes() == b"the old one"


def test_an_interruption_leaves_the_finished_files_whole(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [save_picture(tmp_path / f"{number}.png") for number in range(3)]
    plain = image_files.read_image

    def interrupted(path: Path) -> Any:
        if Path(path).name == "1.png":
            raise KeyboardInterrupt
        return plain(path)

    monkeypatch.setattr(inputs, "read_image", interrupted)
    code, out, err = run("encode", *paths, "-o", tmp_path / "out")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == "exact-vae: interrupted; files that were finished are whole"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["0.safetensors"]
    assert read_latent(tmp_path / "out" / "0.safetensors").shape == (1, 4, 2, 3)
