"""Clips on the command line: folders of frames and arrays, whole or not at all; what cannot be done is told the way."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exact_vae.commands import decode as decode_command
from exact_vae.commands.jobs import Progress
from exact_vae.vae_model.files.clips import CLIP_WRITERS
from exact_vae.vae_model.files.images import read_image, write_image
from exact_vae.vae_model.files.latents import read_latent, write_latent
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

FRAMES = 9


@pytest.fixture
def clip() -> Tensor:
    return torch.rand(1, FRAMES, 24, 16, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def latent(tmp_path: Path, vae: Any, clip: Tensor) -> Path:
    path = tmp_path / "clip.safetensors"
    write_latent(vae.encode(clip), path)
    assert read_latent(path).shape == (1, 4, 3, 3, 2)
    return path


def frames_in(folder: Path) -> Tensor:
    return torch.cat([read_image(path)[0] for path in sorted(folder.iterdir())])


def test_a_clip_becomes_a_folder_of_frames(latent: Path, run: Any, vae: Any) -> None:
    code, out, err = run("decode", latent)
    folder = latent.parent / "clip"
    assert (code, err) == (0, "")
    assert out.startswith(f"{latent} -> {folder} (")
    assert f" s, {FRAMES} frames, " in out
    assert out.rstrip().endswith(" frames/s)")
    assert [path.name for path in sorted(folder.iterdir())] == [f"clip_{n:05d}.png" for n in range(1, FRAMES + 1)]
    expected = vae.decode(read_latent(latent))[0]
    torch.testing.assert_close(frames_in(folder), expected, rtol=0, atol=0.51 / 255)
    assert list(latent.parent.glob(".tmp*")) == []


@pytest.mark.parametrize("ending", ["npy", "safetensors"])
@pytest.mark.parametrize("method", ["exact", "untiled"])
def test_a_clip_becomes_an_array(latent: Path, run: Any, vae: Any, ending: str, method: str) -> None:
    target = latent.parent / f"frames.{ending}"
    code, _, err = run("decode", latent, "-o", target, "--method", method)
    assert (code, err) == (0, "")
    made = torch.from_numpy(np.load(target)) if ending == "npy" else load_file(target)["images"]
    torch.testing.assert_close(made, vae.decode(read_latent(latent))[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize("ending", ["npy", "safetensors"])
def test_arrays_come_back(tmp_path: Path, run: Any, vae: Any, clip: Tensor, ending: str) -> None:
    source, target = tmp_path / f"given.{ending}", tmp_path / "made.safetensors"
    if ending == "npy":
        np.save(source, clip[0].numpy())
    else:
        save_file({"images": clip[0].contiguous()}, source)
    assert run("encode", source, "--frames", "-o", target)[0] == 0
    assert torch.equal(read_latent(target), vae.encode(clip))
    assert run("encode", source, "-o", target)[0] == 0  # without the option they are so many pictures
    assert torch.equal(read_latent(target), vae.encode(clip[0]))


def test_a_folder_is_a_clip_where_that_is_asked_for(tmp_path: Path, run: Any, vae: Any, clip: Tensor) -> None:
    folder = tmp_path / "shot"
    folder.mkdir()
    for number, frame in enumerate(clip[0]):
        write_image(frame, folder / f"frame{number + 2}.png")  # 10 comes behind 9
    code, out, err = run("encode", folder, "--frames")
    assert (code, err) == (0, "")
    assert out.startswith(f"{folder} -> {tmp_path / 'shot.safetensors'} (")
    assert f"{FRAMES} frames, " in out
    stored = (clip * 255).round() / 255
    torch.testing.assert_close(read_latent(tmp_path / "shot.safetensors"), vae.encode(stored), rtol=0, atol=1e-4)
    many = tmp_path / "many"
    assert run("encode", folder, "-o", many)[0] == 0
    assert len(list(many.iterdir())) == FRAMES
    assert read_latent(many / "frame2.safetensors").shape == (1, 4, 1, 3, 2)


def test_frames_left_over_are_told(tmp_path: Path, run: Any, clip: Tensor) -> None:
    np.save(tmp_path / "eight.npy", clip[0, :8].numpy())
    code, _, err = run("encode", tmp_path / "eight.npy", "--frames")
    assert code == 0
    assert "expected 1 + 4 * n frames, got 8: the last 3 are left out" in err
    assert read_latent(tmp_path / "eight.safetensors").shape[2] == 2


def test_eight_bits_are_divided_by_255(tmp_path: Path, run: Any, vae: Any, clip: Tensor) -> None:
    whole = (clip[0] * 255).round().to(torch.uint8)
    np.save(tmp_path / "a.npy", whole.numpy())
    assert run("encode", tmp_path / "a.npy", "--frames")[0] == 0
    assert torch.equal(read_latent(tmp_path / "a.safetensors"), vae.encode(whole[None].float() / 255))


def test_pictures_of_one_frame_are_pictures(tmp_path: Path, run: Any, vae: Any, clip: Tensor) -> None:
    write_latent(vae.encode(clip[:, 0]), tmp_path / "one.safetensors")
    assert run("decode", tmp_path / "one.safetensors")[0] == 0
    assert (tmp_path / "one.png").is_file()
    assert run("decode", tmp_path / "one.safetensors", "-o", tmp_path / "one.npy")[0] == 0
    assert np.load(tmp_path / "one.npy").shape == (1, 24, 16, 3)


def test_clips_of_a_batch_have_numbers(tmp_path: Path, run: Any, vae: Any, clip: Tensor) -> None:
    write_latent(vae.encode(clip[:, :5].repeat(2, 1, 1, 1, 1)), tmp_path / "two.safetensors")
    code, out, _ = run("decode", tmp_path / "two.safetensors", "--json")
    assert code == 0
    (row,) = json.loads(out)["files"]
    assert row["outputs"] == [str(tmp_path / "two_00001"), str(tmp_path / "two_00002")]
    assert row["shape"] == [2, 5, 24, 16, 3]
    assert len(list((tmp_path / "two_00002").iterdir())) == 5


# -- what is there -----------------------------------------------------------------------------------------------------


def test_what_is_there_is_not_replaced_unless_named(latent: Path, run: Any) -> None:
    folder = latent.parent / "clip"
    assert run("decode", latent)[0] == 0
    code, _, err = run("decode", latent)
    assert code == 2
    assert f"expected no such file yet, found {folder}: name it with -o" in err
    code, out, _ = run("decode", latent, "-o", latent.parent, "--no-clobber")
    assert code == 0
    assert "kept as it was" in out
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert run("decode", latent, "-o", latent.parent / "clip.png")[0] == 0
    assert all(path.stat().st_mtime_ns > before[path.name] for path in folder.iterdir())


def test_a_folder_with_something_else_is_left_alone(latent: Path, run: Any) -> None:
    folder = latent.parent / "clip"
    folder.mkdir()
    (folder / "diary.txt").write_text("mine")
    code, _, err = run("decode", latent, "-o", latent.parent / "clip.png")
    assert code == 2
    assert f"expected a folder of frames of an earlier run, or none, found diary.txt in {folder}" in err
    assert [path.name for path in folder.iterdir()] == ["diary.txt"]


@pytest.mark.parametrize("ending", ["png", "npy", "safetensors"])
def test_what_fails_on_the_way_leaves_nothing(
    latent: Path, run: Any, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """And what was there stays."""
    target = latent.parent / f"made.{ending}"
    assert run("decode", latent, "-o", target)[0] == 0
    before = {path: path.read_bytes() for path in latent.parent.rglob("*") if path.is_file()}

    def failing(target: Path, _: Any) -> Any:
        def open_writer(path: Path, shape: tuple[int, ...]) -> Any:
            return CLIP_WRITERS[target.suffix](path, (shape[0] + 1, *shape[1:]))

        return open_writer

    monkeypatch.setattr(decode_command, "clip_writer", failing)
    code, _, err = run("decode", latent, "-o", target)
    assert code == 2
    assert "expected 10 frames, got 9" in err
    assert {path: path.read_bytes() for path in latent.parent.rglob("*") if path.is_file()} == before
    assert [path.name for path in latent.parent.iterdir() if path.name.startswith(".tmp")] == []


# -- told the way ------------------------------------------------------------------------------------------------------


def test_a_clip_given_to_a_vae_of_pictures_is_told_the_way(latent: Path, tmp_path: Path, run: Any) -> None:
    code, _, err = run("decode", latent, vae="bundled")
    assert code == 2
    assert "of a clip, 3 frames of latents: give the VAE of the model that made it with --vae" in err
    np.save(tmp_path / "a.npy", np.zeros((5, 16, 16, 3), np.float32))
    code, _, err = run("encode", tmp_path / "a.npy", "--frames", vae="bundled")
    assert code == 2
    assert "as a clip of 5 frames: leave out --frames, or give a VAE of clips with --vae" in err


def test_frames_of_several_sizes_are_named(tmp_path: Path, run: Any) -> None:
    folder = tmp_path / "shot"
    folder.mkdir()
    for number, height in enumerate((16, 24)):
        write_image(torch.zeros(height, 16, 3), folder / f"{number}.png")
    code, _, err = run("encode", folder, "--frames")
    assert code == 2
    assert "expected pictures of one size, 16 x 16 as 0.png, got 16 x 24 of 1.png" in err


def test_other_names_and_arrays_are_refused_in_a_line(latent: Path, tmp_path: Path, run: Any) -> None:
    assert "-o: expected a name ending in .png, " in run("decode", latent, "-o", tmp_path / "clip.avi")[2]
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY no")
    code, _, err = run("encode", tmp_path / "broken.npy", "--frames")
    assert code == 2
    assert "images: expected an array of numbers, got" in err
    np.save(tmp_path / "first.npy", np.zeros((3, 5, 16, 16), np.float32))
    assert "movedim(0, -1)[None]" in run("encode", tmp_path / "first.npy", "--frames")[2]


def test_the_bar_shows_frames_per_second(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 10.0

        def perf_counter(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr("exact_vae.commands.jobs.time", clock)
    bar: Any = tqdm(total=1, disable=False, file=StringIO())
    progress = Progress(bar, 0)
    progress.frames = 80
    clock.now += 4
    progress(0.25)
    assert bar.postfix == "5 frames/s"
    progress.part(1, 2)(0.5)
    assert bar.n == 0.75
    assert bar.postfix == "15 frames/s"
    bar.close()
