"""`exact-vae plan --frames`: what a clip takes, told from the header of a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import InputError, MemoryBudgetError, load_vae, save
from exact_vae.model_management.vae_plan import plan_file
from exact_vae.tests.families.table import ROWS, random_model
from exact_vae.vae_model.errors.bytesize import format_bytes


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("wan") / "wan.safetensors"
    save(random_model(ROWS["Wan 2.1, Qwen-Image"]), path)
    return str(path)


def plan(file: str, frames: int, direction: str = "decode", size: str = "640x352") -> Any:
    return plan_file([file], size, direction, memory="4GiB", dtype="float16", device="cpu", frames=frames)


def test_frames_of_images_are_those_of_latents_between(wan: str) -> None:
    clip = plan(wan, 33)
    assert clip.shape == (9, 16, 44, 80)
    assert clip.turned
    assert json.loads(clip.as_json())["turned"]
    assert plan(wan, 1).shape == (1, 16, 44, 80)
    assert plan(wan, 33, "encode").shape == (33, 3, 352, 640)
    assert clip.untiled_work > 25 * plan(wan, 1).untiled_work  # of clips convolutions see three frames


COUNTS = [(32, "say 29 or 33"), (2, "say 1 or 5"), (0, "expected at least 1"), (-3, "expected at least 1")]


@pytest.mark.parametrize(("frames", "way"), COUNTS)
def test_counts_that_no_clip_has(wan: str, frames: int, way: str) -> None:
    with pytest.raises(InputError, match=f"^--frames: expected .*, got {frames}: .*") as caught:
        plan(wan, frames)
    assert way in str(caught.value)


def test_a_vae_of_images_has_no_clips(small_file: Path) -> None:
    assert plan(str(small_file), 1, size="64x64").shape[0] == 1
    with pytest.raises(InputError, match=r"^--frames: expected 1 for a VAE of single images, got 5: leave it out"):
        plan(str(small_file), 5, size="64x64")


def test_what_frames_that_leave_take_is_told_and_is_what_decode_frames_does(wan: str) -> None:
    found = plan(wan, 81)
    early = found.early
    assert early.images == (16, 352, 640, 3)
    assert f"or as frames leave, 16 at a time: peak {format_bytes(early.peak_bytes)}" in found.table()
    assert json.loads(found.as_json())["early"]["past_bytes"] == early.past_bytes
    assert early.peak_bytes < found.peak_bytes
    assert plan(wan, 9).early is None  # all at once, then
    assert plan(wan, 81, "encode").early is None
    vae = load_vae(wan, device="cpu", dtype="float16")
    z = torch.zeros(1, 16, 6, 8, 10)
    next(vae.decode_frames(z, memory="64MiB"))
    told = plan_file([wan], "80x64", "decode", memory="64MiB", dtype="float16", device="cpu", frames=21)
    assert (told.early.peak_bytes, told.early.past_bytes) == (vae.last_plan.peak_bytes, vae.last_plan.past_bytes)


def test_where_only_leaving_frames_fit_their_plan_is_the_plan(wan: str) -> None:
    least = 0
    with pytest.raises(MemoryBudgetError, match="a clip of at most") as refused:
        plan_file([wan], "64x64", "encode", memory="3MiB", dtype="float16", device="cpu", frames=401)
    least = refused.value.needed_bytes or 0
    assert least > 3 * 2**20
    found = plan_file([wan], "64x64", "decode", memory="3MiB", dtype="float16", device="cpu", frames=401)
    assert found.past_bytes
    assert found.peak_bytes <= 3 * 2**20
