"""Video files on the command line: times survive, nothing is cut or broken, what cannot be done is told the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae.__main__ import main
from exact_vae.commands.jobs import Outcome
from exact_vae.vae_model.files.images import read_image
from exact_vae.vae_model.files.latents import RATE_KEY, latent_metadata, read_latent, write_latent
from exact_vae.vae_model.files.video import Video, video_writer
from exact_vae.vae_model.files.video_read import read_video
from torch import Tensor

pytest.importorskip("av", reason="video files are read and written by PyAV, the extra `video`")
FRAMES = 9


def clip_of(frames: int, height: int = 32, width: int = 24) -> Tensor:
    pixels = torch.rand(frames, height // 8, width // 8, 3, generator=torch.Generator().manual_seed(frames))
    return (pixels.repeat_interleave(8, 1).repeat_interleave(8, 2) * 255).round() / 255


@pytest.fixture
def latent(tmp_path: Path, vae: Any) -> Path:
    path = tmp_path / "clip.safetensors"
    write_latent(vae.encode(clip_of(FRAMES)[None]), path)
    return path


@pytest.mark.parametrize("ending", ["mkv", "apng", "webp", "png"])
def test_lossless_frames_are_the_library_s(latent: Path, run: Any, vae: Any, ending: str) -> None:
    target = latent.parent / f"out.{ending}"
    assert run("decode", latent, "-o", target)[0] == 0
    folder = target.with_suffix("")
    made = torch.cat([read_image(path)[0] for path in sorted(folder.iterdir())]) if ending == "png" else None
    frames = read_video(target).frames[0] if made is None else made
    expected = (vae.decode(read_latent(latent))[0] * 255 + 0.5).floor() / 255
    assert frames.shape == expected.shape
    assert (frames - expected).abs().max() <= 1.01 / 255  # a value that lies between two steps may fall to either
    assert (frames != expected).float().mean() < 0.01


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "H.264 4:2:0 at 16 frames a second, as such models make clips (--fps for another)"),
        (("--fps", "23.976"), "H.264 4:2:0 at 24000/1001 frames a second)"),
        (("--chroma", "444", "--fps", "24"), "H.264 4:4:4 at 24 frames a second)"),
        (("--lossless", "--fps", "24"), "H.264 lossless at 24 frames a second)"),
    ],
)
def test_what_was_written_is_told(latent: Path, run: Any, arguments: tuple[str, ...], told: str) -> None:
    target = latent.parent / "out.mp4"
    code, out, err = run("decode", latent, "-o", target, *arguments)
    assert (code, err) == (0, "")
    assert told in out
    assert read_video(target).frames.shape == (1, FRAMES, 32, 24, 3)


def test_the_rate_of_what_was_encoded_comes_back(tmp_path: Path, run: Any) -> None:
    source, latent = tmp_path / "shot.mkv", tmp_path / "shot.safetensors"
    with video_writer(source, (FRAMES, 32, 24, 3), Video(Fraction(24000, 1001))) as take:
        take(clip_of(FRAMES))
    code, out, err = run("encode", source)
    assert (code, err) == (0, "")
    assert f"{FRAMES} frames" in out
    assert latent_metadata(latent)[RATE_KEY] == "24000/1001"
    code, out, _ = run("decode", latent, "-o", tmp_path / "back.mp4")
    assert "at 24000/1001 frames a second, as what was encoded)" in out
    assert read_video(tmp_path / "back.mp4").rate == Fraction(24000, 1001)


@pytest.mark.parametrize("ending", ["mkv", "gif", "webp"])
def test_a_video_is_encoded_as_its_frames_are(tmp_path: Path, run: Any, vae: Any, ending: str) -> None:
    source = tmp_path / f"shot.{ending}"
    with video_writer(source, (FRAMES, 32, 24, 3)) as take:
        take(clip_of(FRAMES))
    assert run("encode", source, "--frames", "-o", tmp_path / "made.safetensors")[0] == 0
    expected = vae.encode(read_video(source).frames)
    assert torch.equal(read_latent(tmp_path / "made.safetensors"), expected)
    assert expected.shape[2] == 3


def test_videos_of_a_folder_and_of_several_latents(tmp_path: Path, run: Any, latent: Path) -> None:
    shots, made = tmp_path / "shots", tmp_path / "made"
    shots.mkdir()
    for number in (1, 2):
        with video_writer(shots / f"{number}.mkv", (5, 32, 24, 3)) as take:
            take(clip_of(5))
    assert run("encode", shots, "-o", made)[0] == 0
    assert sorted(path.name for path in made.iterdir()) == ["1.safetensors", "2.safetensors"]
    assert run("decode", made, "--format", "webm")[0] == 0
    assert read_video(made / "2.webm").frames.shape[1] == 5


def test_sizes_of_no_whole_cells_are_told(tmp_path: Path, run: Any) -> None:
    source = tmp_path / "odd.mkv"
    with video_writer(source, (6, 37, 27, 3)) as take:
        take(torch.rand(6, 37, 27, 3))
    _, out, err = run("encode", source)
    assert "cropped to 24 x 32, whole cells of 8 pixels" in out
    assert "last" in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ("-o", "a.png", "--fps", "24"),
            "decode: expected a video file with --fps, --chroma and --lossless, got .png: ",
        ),
        (("-o", "a.gif", "--lossless"), "--lossless: expected a kind of file that can, got .gif: "),
        (("-o", "a.mp4", "--fps", "fast"), "--fps: expected frames a second, such as 24 or 24000/1001, got 'fast': "),
        (("--format", "avi"), "--format: expected a name ending in .png, "),
    ],
)
def test_wrong_words_are_told_before_any_work(latent: Path, run: Any, arguments: tuple[str, ...], text: str) -> None:
    code, out, err = run("decode", latent, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"exact-vae: {text}")
    assert err.count("\n") == 1


def test_what_is_killed_leaves_no_broken_file_and_runs_again(tmp_path: Path, file: Path, vae: Any) -> None:
    latent, target = tmp_path / "long.safetensors", tmp_path / "long.mp4"
    write_latent(vae.encode(clip_of(33, 256, 256)[None]), latent)
    words = ["decode", str(latent), "-o", str(target), "--vae", str(file), "--device", "cpu", "--dtype", "float32"]
    command = [sys.executable, "-m", "exact_vae", *words, "--quiet"]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while process.poll() is None and not list(tmp_path.glob(".tmp-*.mp4")):
        assert time.monotonic() < deadline, "it does not begin to write"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not target.exists()
    assert main([*words, "--quiet"]) == 0
    assert read_video(target).frames.shape == (1, 33, 256, 256, 3)


def test_ranks_write_videos_as_they_are_asked_for(
    latent: Path, vae: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from exact_vae.commands import shard

    target, images = latent.parent / "shared.mp4", vae.decode(read_latent(latent))

    def alone(options: Any, inputs: Any, suffix: str, write: Any) -> tuple[int, list[Outcome]]:
        return 0, [Outcome(one, 1.0, write(vae, one, images, options.output), None) for one in inputs]

    monkeypatch.setattr(shard, "decode_files", alone)
    code, out, _ = run("decode", "--shard", latent, "-o", target, "--fps", "24000/1001", "--chroma", "444")
    assert code == 0
    assert "H.264 4:4:4 at 24000/1001 frames a second" in out
    assert read_video(target).rate == Fraction(24000, 1001)
    assert run("decode", "--shard", latent, "-o", target)[0] == 0
    assert read_video(target).rate == 16
