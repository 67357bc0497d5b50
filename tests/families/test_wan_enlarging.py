"""The Wan 2.1 decoder of twelve channels, which makes both sides of an image twice as large as what was encoded.

Held to diffusers' class, whose result is such channels, and PyTorch's pixel shuffle behind it.
"""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import load_vae
from exact_vae.model_management.vae_plan import plan_file
from exact_vae.tests.exact.test_planner_prediction import AMPLE, META, assert_predicted
from exact_vae.tests.exactness import assert_exact
from exact_vae.tests.families.table import Row, levels, random_model, wan
from exact_vae.tests.families.test_wan import noise
from exact_vae.tests.families.test_wan_clips import by_engine, plans
from exact_vae.vae_model.checkpoint.convert import convert_vae
from exact_vae.vae_model.checkpoint.describe import describe_vae
from exact_vae.vae_model.checkpoint.load import load_model
from exact_vae.vae_model.checkpoint.save import save, to_layout
from exact_vae.vae_model.errors import InputError
from exact_vae.vae_model.evaluation.evaluate import evaluate
from exact_vae.vae_model.exact.plan.search import make_plan
from exact_vae.vae_model.families.ldm.config import LevelsConfig
from exact_vae.vae_model.families.table import decoder_of, encoder_of, family_knowing
from exact_vae.vae_model.families.wan.model import WanVAE
from exact_vae.vae_model.files.images import write_image
from torch import Tensor
from torch.nn import functional

pytestmark = pytest.mark.usefixtures("no_gradients", "one_thread")

Z = 4
CONFIG = wan(Z, levels(8, 16, 32, 32), out_channels=12)


@cache
def model() -> Any:
    return random_model(Row("wan", CONFIG, Z, 8)).double()


@cache
def theirs() -> Any:
    diffusers: Any = pytest.importorskip("diffusers")
    made = diffusers.AutoencoderKLWan(base_dim=8, z_dim=Z, num_res_blocks=1, out_channels=12)
    made.load_state_dict(to_layout(model(), "diffusers"))
    for layer in made.modules():
        if type(layer).__name__ == "WanUpsample":  # which goes by way of float32
            layer.forward = lambda x: functional.interpolate(x, scale_factor=2, mode="nearest-exact")
    return made.double().eval().requires_grad_(False)


def shuffled(clips: Tensor) -> Tensor:
    """(B, 12, T, h, w) -> (B, 3, T, 2h, 2w)."""
    return functional.pixel_shuffle(clips.transpose(1, 2), 2).transpose(1, 2)


@pytest.mark.parametrize("shape", [(1, 3, 2), (2, 2, 3), (3, 1, 2)], ids=str)
def test_it_equals_diffusers_and_a_pixel_shuffle_under_every_budget(shape: tuple[int, int, int]) -> None:
    z, half = noise(1, Z, *shape, dtype=torch.float64), decoder_of(model())
    expected = shuffled(theirs().decode(z).sample)
    assert expected.shape == (1, 3, 4 * shape[0] - 3, 16 * shape[1], 16 * shape[2])
    assert_exact(model().decode(z).clamp(-1, 1), expected)
    if shape[0] == 1:
        assert_exact(model().decode(z[:, :, 0]).clamp(-1, 1), expected[:, :, 0])
    for plan in plans(half.program, z[0], 0):
        assert_exact(by_engine(half, z[0], plan).clamp(-1, 1), expected[0])
        assert plan.turned == (shape[0] > 1 and shape[2] > shape[1])


@pytest.mark.parametrize("layout", ["wan", "diffusers"])
def test_files_go_there_and_back(layout: str, tmp_path: Path) -> None:
    for half in (None, "encoder", "decoder"):
        stored = to_layout(model(), layout)
        outer = {"encoder": ("conv1.", "quant_conv."), "decoder": ("conv2.", "post_quant_conv.")}.get(half or "", ())
        stored = {k: v for k, v in stored.items() if half is None or k.startswith((f"{half}.", *outer))}
        loaded: Any = load_model(stored)
        assert (loaded.family, loaded.config.factor) == ("wan", 8)
        assert loaded.config.decode_factor == (8 if half == "encoder" else 16)
        save(loaded.model, tmp_path / "a.safetensors", layout="wan")
        again = load_model(tmp_path / "a.safetensors").model.state_dict()
        assert again.keys() == loaded.model.state_dict().keys()
        assert all(torch.equal(again[key], tensor) for key, tensor in loaded.model.state_dict().items())


def test_a_diffusers_folder_holds_it_in_the_class_of_wan_alone(tmp_path: Path) -> None:
    save(copy.deepcopy(model()).float(), tmp_path / "vae.safetensors")
    convert_vae([str(tmp_path / "vae.safetensors")], tmp_path / "folder", "diffusers")
    text = (tmp_path / "folder" / "config.json").read_text()
    fields = json.loads(text)
    assert (fields["_class_name"], fields["in_channels"], fields["out_channels"]) == ("AutoencoderKLWan", 3, 12)
    vae = pytest.importorskip("diffusers").AutoencoderKLWan.from_pretrained(
        tmp_path / "folder", low_cpu_mem_usage=False
    )
    z = noise(1, Z, 2, 2, 2)
    ours = load_vae(tmp_path / "folder", device="cpu", dtype="float32").decode(z)
    assert_exact(ours, (shuffled(vae.decode(z).sample) + 1).permute(0, 2, 3, 4, 1) / 2)
    assert_exact(load_vae(vae, device="cpu", dtype="float32").decode(z), ours)
    (tmp_path / "folder" / "config.json").write_text(text.replace("AutoencoderKLWan", "AutoencoderKLQwenImage"))
    with pytest.raises(InputError, match="expected an encoder as wide as its decoder for AutoencoderKLQwenImage"):
        convert_vae([str(tmp_path / "folder")], tmp_path / "other", "diffusers")


@pytest.mark.parametrize("method", ["exact", "untiled", "blend"])
def test_what_was_encoded_comes_back_twice_as_large(method: str) -> None:
    narrow = copy.deepcopy(model()).float()
    vae = load_vae(to_layout(narrow, "wan"), device="cpu", dtype="float32")
    assert (vae.downscale_ratio, vae.upscale_ratio, vae.input_channels, vae.output_channels) == (8, 16, 3, 3)
    pixels = torch.rand(1, 5, 35, 50, 3, generator=torch.Generator().manual_seed(2))
    latents = vae.encode(pixels, method)
    assert_exact(latents, narrow.encode(pixels[:, :, 1:33, 1:49].permute(0, 4, 1, 2, 3) * 2 - 1))
    images = vae.decode(latents, method)
    assert (latents.shape, images.shape) == ((1, Z, 2, 4, 6), (1, 5, 64, 96, 3))
    assert (vae.last_report.height, vae.last_report.width) == (64, 96)
    assert_exact(images, ((narrow.decode(latents) + 1) / 2).clamp(0, 1).permute(0, 2, 3, 4, 1))
    assert torch.equal(vae.decode_tiled(latents, 2, 2).clamp(0, 1), vae.decode(latents, tile_size=32))


def test_plans_and_info_know_its_size(tmp_path: Path) -> None:
    path = str(tmp_path / "vae.safetensors")
    save(copy.deepcopy(model()).float(), Path(path))
    shapes = [plan_file([path], "96x64", way, memory="1GiB", frames=5).shape for way in ("decode", "encode")]
    assert shapes == [(2, Z, 4, 6), (5, 3, 64, 96)]
    with pytest.raises(InputError, match="--size: expected at least 16 x 16, got 96x8"):
        plan_file([path], "96x8", "decode", memory="1GiB")
    facts = describe_vae([path])
    assert facts["latents"] == (
        "(batch, 4, (frames - 1) / 4 + 1, height / 8, width / 8), decoded to 16 pixels a cell, "
        "raw mean of the posterior"
    )


def test_images_that_do_not_come_back_in_their_size_are_not_compared(tmp_path: Path) -> None:
    write_image(torch.rand(64, 64, 3), tmp_path / "a.png")
    vae = load_vae(to_layout(copy.deepcopy(model()).float(), "wan"), device="cpu", dtype="float32")
    with pytest.raises(InputError, match=r"^large: expected a decoder that gives images back .* got one of 16"):
        evaluate([("large", vae)], tmp_path, crop=64)


def test_the_hosts_own_object_gives_what_the_host_gives() -> None:
    """Channels: whoever asks the host for it shuffles them himself."""
    host = WanVAE(CONFIG).double()
    host.load_state_dict(model().state_dict())
    del host.shuffle
    del host.config
    assert family_knowing(host) is family_knowing(model())
    z = noise(Z, 2, 3, 2, dtype=torch.float64)
    half = decoder_of(host)
    plan = make_plan(half.program, (2, Z, 3, 2), torch.float64, AMPLE)
    made = by_engine(half, z, plan)
    assert made.shape == (12, 5, 24, 16)
    assert_exact(shuffled(made[None]), model().decode(z[None]))
    assert encoder_of(host, Z).program.in_channels == 3


@pytest.mark.parametrize("shape", [(1, 16, 25, 33), (2, 16, 12, 20)], ids=str)
def test_plans_of_the_full_width(shape: tuple[int, int, int, int]) -> None:
    half = LevelsConfig(96, (96, 192, 384, 384), 2)
    with META:
        large: Any = WanVAE(wan(16, half, out_channels=12)).half().eval()
    program = decoder_of(large).program
    resident = make_plan(program, shape, torch.float16, AMPLE, device_type="meta")
    for share in (1.0, 0.7):
        plan = make_plan(program, shape, torch.float16, int(share * resident.peak_bytes), device_type="meta")
        assert_predicted(program, plan, shape)
