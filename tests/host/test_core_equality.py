"""With a VAE of the core's loader, our nodes give what the core's nodes give, and less is asked of the memory."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy
import pytest
from exact_vae.tests.host.client import Client, Outcome, Prompt
from PIL import Image

pytestmark = pytest.mark.host

Same = Callable[..., Outcome]
VAE = {"vae_name": "random_kl.safetensors"}


def report(outcome: Outcome, link: list[Any]) -> dict[str, Any]:
    """What a node of ours told about its run."""
    return outcome.ui(link)["exact_vae"][0]


@pytest.mark.parametrize(("width", "height", "batch"), [(31, 24, 1), (9, 20, 3)])
def test_decode(assert_same: Same, width: int, height: int, batch: int) -> None:
    prompt = Prompt()
    vae = prompt.add("VAELoader", **VAE)
    samples = prompt.add("ExactVAETestLatent", width=width, height=height, batch=batch, seed=1)
    core = prompt.add("VAEDecode", samples=samples, vae=vae)
    ours = prompt.add("ExactVAEDecode", samples=samples, vae=vae)
    outcome = assert_same(prompt, core=core, ours=ours)
    told = report(outcome, ours)
    assert told["exact"] is True
    assert (told["width"], told["height"], told["images"]) == (8 * width, 8 * height, batch)


def test_decode_in_little_memory(assert_same: Same) -> None:
    prompt = Prompt()
    vae = prompt.add("VAELoader", **VAE)
    samples = prompt.add("ExactVAETestLatent", width=60, height=40, batch=1, seed=2)
    core = prompt.add("VAEDecode", samples=samples, vae=vae)
    ample = prompt.add("ExactVAEDecode", samples=samples, vae=vae)
    little = prompt.add("ExactVAEDecode", samples=samples, vae=vae, memory=0.15)
    outcome = assert_same(prompt, core=core, ample=ample, little=little)
    told, told_little = report(outcome, ample), report(outcome, little)
    assert told_little["plan_bytes"] <= 0.15 * 2**30
    assert told["plan_bytes"] > told_little["plan_bytes"]


@pytest.mark.parametrize(("width", "height", "batch"), [(203, 157, 1), (64, 96, 2)])
def test_encode(assert_same: Same, width: int, height: int, batch: int) -> None:
    prompt = Prompt()
    vae = prompt.add("VAELoader", **VAE)
    pixels = prompt.add("ExactVAETestImage", width=width, height=height, batch=batch, seed=3)
    core = prompt.add("VAEEncode", pixels=pixels, vae=vae)
    ours = prompt.add("ExactVAEEncode", pixels=pixels, vae=vae)
    tiled = prompt.add(
        "ExactVAEEncodeTiled", pixels=pixels, vae=vae, tile_size=64, overlap=16, temporal_size=64, temporal_overlap=8
    )
    outcome = assert_same(prompt, core=core, ours=ours, tiled=tiled)
    assert report(outcome, ours)["exact"] is True


def test_inpaint_encode(client: Client, saved: Callable[[str], numpy.ndarray]) -> None:
    prompt = Prompt()
    vae = prompt.add("VAELoader", **VAE)
    pixels = prompt.add("ExactVAETestImage", width=131, height=117, batch=1, seed=4)
    inputs = {"pixels": pixels, "mask": [pixels[0], 1], "grow_mask_by": 9}
    applied = prompt.add("ExactVAEApply", vae=vae)
    nodes = {
        "core": prompt.add("VAEEncodeForInpaint", vae=vae, **inputs),
        "ours": prompt.add("ExactVAEEncodeForInpaint", vae=vae, **inputs),
        "applied": prompt.add("VAEEncodeForInpaint", vae=applied, **inputs),
    }
    for name, link in nodes.items():
        prompt.add("ExactVAETestDumpLatent", samples=link, name=name)
    client.run(prompt)
    for name in ("ours", "applied"):
        numpy.testing.assert_allclose(saved(name), saved("core"), rtol=0, atol=1e-4)
        numpy.testing.assert_array_equal(saved(f"{name}_mask"), saved("core_mask"))
    assert saved("core_mask").min() < saved("core_mask").max()


def test_pictures_as_users_save_them(client: Client) -> None:
    prompt = Prompt()
    vae = prompt.add("VAELoader", **VAE)
    image = prompt.add("LoadImage", image="example.png")
    small = prompt.add("ImageScale", image=image, upscale_method="bilinear", width=192, height=136, crop="center")
    core = prompt.add("VAEDecode", samples=prompt.add("VAEEncode", pixels=small, vae=vae), vae=vae)
    ours = prompt.add("ExactVAEDecode", samples=prompt.add("ExactVAEEncode", pixels=small, vae=vae), vae=vae)
    files = [prompt.add("SaveImage", images=link, filename_prefix="same") for link in (core, ours)]
    outcome = client.run(prompt)
    core_picture, our_picture = (picture(client, outcome, link) for link in files)
    assert core_picture.std() > 3
    assert abs(core_picture - our_picture).max() <= 1


def picture(client: Client, outcome: Outcome, link: list[Any]) -> numpy.ndarray:
    """A saved picture, by the route that the browser uses."""
    found = outcome.ui(link)["images"][0]
    path = f"/view?filename={found['filename']}&subfolder={found['subfolder']}&type={found['type']}"
    return numpy.array(Image.open(io.BytesIO(client.fetch(path)))).astype(int)
