"""Clips at the library's doors: axes that are kept, axes that stand elsewhere, and what is said of memory."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from exact_vae import load_vae
from exact_vae.model_management.exact_vae import make_exact
from exact_vae.model_management.vae_plan import plan_text
from exact_vae.nodes import NODE_CLASS_MAPPINGS
from exact_vae.tests.families.table import ROWS, Row, levels, random_model, wan
from exact_vae.vae_model.checkpoint.save import to_layout
from exact_vae.vae_model.errors import InputError, MemoryBudgetError
from exact_vae.vae_model.exact.plan.search import make_plan
from exact_vae.vae_model.families.table import decoder_of, encoder_of
from torch import Tensor

pytestmark = pytest.mark.usefixtures("no_gradients")

Z = 4
ROW = Row("wan", wan(Z, levels(8, 16, 32, 32)), Z, 8)


@pytest.fixture(scope="module")
def vae() -> Any:
    return load_vae(to_layout(random_model(ROW), "wan"), device="cpu", dtype="float32")


@pytest.mark.parametrize("frames", [1, 5])
def test_what_has_an_axis_of_frames_keeps_it(vae: Any, frames: int) -> None:
    pixels = torch.rand(2, frames, 24, 16, 3, generator=torch.Generator().manual_seed(1))
    latents = vae.encode(pixels)
    assert latents.shape == (2, Z, (frames + 3) // 4, 3, 2)
    images = vae.decode(latents)
    assert images.shape == pixels.shape
    assert vae.decode_tiled(latents).shape == pixels.shape
    if frames == 1:
        assert torch.equal(vae.decode(latents[:, :, 0]), images[:, 0])  # of pictures there is no such axis
    shown = NODE_CLASS_MAPPINGS["ExactVAEDecode"]().decode({"samples": latents}, vae)["result"][0]
    assert torch.equal(shown, images.flatten(0, 1))


def test_a_vae_of_pictures_gives_pictures() -> None:
    small = load_vae("bundled", device="cpu", dtype="float32")
    assert small.decode(torch.zeros(1, 16, 1, 4, 4)).shape == (1, 32, 32, 3)


LATENTS = {
    "channels last": ((1, 3, 5, 6, Z), "the channels are last, pass samples.movedim(-1, 1)"),
    "frames first": ((1, 3, Z, 5, 6), "the frames are before the channels, pass samples.transpose(1, 2)"),
    "no batch": ((Z, 3, 5, 6), "the batch axis is missing, add it by samples[None]"),
    "pictures with channels last": ((2, 5, 6, Z), "the channels are last, pass samples.movedim(-1, 1)"),
    "others": ((1, 16, 3, 5, 6), "use the VAE that belongs to the model"),
    "others, which look alike": ((1, 16, 3, 5, Z), "use the VAE that belongs to the model"),
}
PIXELS = {
    "channels first": ((1, 3, 5, 24, 16), "pass pixels.movedim(1, -1)"),
    "channels behind frames": ((1, 5, 3, 24, 16), "pass pixels.movedim(2, -1)"),
    "no batch": ((3, 5, 24, 16), "the batch axis is missing, pass pixels.movedim(0, -1)[None]"),
    "others": ((1, 5, 24, 16, 7), "convert the frames to 3 channels"),
}


@pytest.mark.parametrize("name", LATENTS)
def test_latents_of_clips_with_other_axes_are_told_the_way(vae: Any, name: str) -> None:
    shape, way = LATENTS[name]
    with pytest.raises(InputError) as caught:
        vae.decode(torch.zeros(shape))
    assert str(caught.value) == f"latents: expected (batch, {Z}, frames, height, width), got {shape}: {way}"


@pytest.mark.parametrize("name", PIXELS)
def test_clips_with_other_axes_are_told_the_way(vae: Any, name: str) -> None:
    shape, way = PIXELS[name]
    with pytest.raises(InputError) as caught:
        vae.encode(torch.zeros(shape))
    assert str(caught.value) == f"pixels: expected (batch, frames, height, width, 3) in 0..1, got {shape}: {way}"


@pytest.mark.parametrize("name", ["channels last", "frames first", "no batch"])
def test_the_way_that_is_told_is_one(vae: Any, name: str) -> None:
    z = torch.randn(1, Z, 3, 5, 6, generator=torch.Generator().manual_seed(2))
    ways = {"channels last": z.movedim(1, -1), "frames first": z.transpose(1, 2), "no batch": z[0]}
    samples = ways[name]
    with pytest.raises(InputError) as caught:
        vae.decode(samples)
    way = str(caught.value).replace("add it by ", "pass ").rpartition("pass ")[2]
    mended = eval(way, {"samples": samples})
    assert torch.equal(vae.decode(mended), vae.decode(z))


def test_pictures_of_channels_last_are_told_the_way_too() -> None:
    small = load_vae("bundled", device="cpu", dtype="float32")
    with pytest.raises(InputError, match=r"the channels are last, pass samples\.movedim\(-1, 1\)$"):
        small.decode(torch.zeros(1, 6, 7, 16))


# -- memory ------------------------------------------------------------------------------------------------------------


def test_a_plan_says_what_the_finished_clip_takes(vae: Any) -> None:
    text = plan_text(vae, "decode", 640, 352, None, frames=17)
    assert text.startswith("decode 640 x 352, 17 frames, float32, cpu: ")
    size = 17 * 352 * 640 * 3 * 4
    expected = f"the finished clip: {size / 2**20:.1f} MiB in main memory, 17 frames of 640 x 352 in float32"
    assert expected in text.splitlines()
    given = plan_text(vae, "encode", 640, 352, None, frames=17)
    assert expected.replace("finished clip", "clip given") in given.splitlines()
    shown = NODE_CLASS_MAPPINGS["ExactVAEPlan"]().plan(vae, 640, 352, frames=17)["result"][0]
    assert expected in shown.splitlines()
    assert "main memory" not in plan_text(vae, "decode", 640, 352, None)


@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_for_programs_it_is_a_number(vae: Any, direction: str) -> None:
    shape = (5, Z, 44, 80) if direction == "decode" else (17, 3, 352, 640)
    coder = decoder_of(vae.first_stage_model) if direction == "decode" else encoder_of(vae.first_stage_model, Z)
    plan = make_plan(coder.program, shape, torch.float16, 2**33)
    assert json.loads(plan.as_json())["image_bytes"] == 17 * 352 * 640 * 3 * 4
    assert plan.images == (17, 352, 640, 3)


def test_counts_that_no_clip_has_are_told_by_the_node(vae: Any) -> None:
    assert plan_text(vae, "decode", 64, 64, None, frames=6) == "frames: expected 1 + 4 * n, got 6: say 5 or 9"
    small = load_vae("bundled", device="cpu", dtype="float32")
    assert plan_text(small, "decode", 64, 64, None, frames=5).startswith("frames: expected 1 for a VAE of single")


@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_fewer_frames_are_suggested_where_they_fit(vae: Any, direction: str) -> None:
    z = torch.zeros(1, Z, 9, 4, 6)
    pixels = torch.zeros(1, 33, 32, 48, 3)

    def call(memory: int, frames: int) -> Tensor:
        if direction == "decode":
            return vae.decode(z[:, :, : (frames + 3) // 4], memory=memory)
        return vae.encode(pixels[:, :frames], memory=memory)

    with pytest.raises(MemoryBudgetError) as refused:
        call(1, 33)
    least = refused.value.needed_bytes or 0
    assert "frames:" in str(refused.value)
    assert "a clip of" not in str(refused.value)  # not even one fits
    budget = least * 2 // 3
    with pytest.raises(MemoryBudgetError, match=r"^48 x 32, 33 frames: .* or a clip of at most \d+ frames$") as refused:
        call(budget, 33)
    most = int(str(refused.value).split()[-2])
    assert 1 < most < 33
    assert most % 4 == 1
    call(budget, most)
    with pytest.raises(MemoryBudgetError):
        call(budget, most + 4)


def test_the_hosts_vae_is_told_the_same(stub_host: Any) -> None:
    from exact_vae.tests.families.test_wan_host import host_vae

    made = make_exact(host_vae(stub_host, random_model(ROWS["Wan 2.1, Qwen-Image"])), 2**20)
    text = plan_text(made, "decode", 256, 128, 2**19, frames=33)
    assert text.startswith("256 x 128, 33 frames: expected a budget of at least ")


def test_the_line_of_a_clip_tells_its_frames(vae: Any, stub_host: Any) -> None:
    from exact_vae.tests.families.test_wan_host import host_vae

    z = torch.zeros(1, Z, 5, 3, 2)
    for call, frames in ((lambda: vae.decode(z), 17), (lambda: vae.encode(torch.zeros(2, 5, 24, 16, 3)), 10)):
        call()
        report = vae.last_report
        report.seconds = 2.0
        assert report.as_dict()["frames"] == frames
        assert report.line.endswith(f" · {frames} frames, {frames / 2:.3g} frames/s · 2.0 s")
    vae.decode(z[:, :, 0])
    assert "frames" not in vae.last_report.line
    made = make_exact(host_vae(stub_host, random_model(ROWS["Wan 2.1, Qwen-Image"])))
    made.decode(torch.zeros(1, 16, 2, 3, 2))
    assert " · 5 frames, " in made.last_report.line
