"""Load VAE (ExactVAE): its VAEs go through the core's nodes, and the core's through ours."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from exact_vae.tests.host.client import Client, HostError, Outcome, Prompt

pytestmark = pytest.mark.host

NAME = "random_kl.safetensors"
TILES = {"tile_size": 64, "overlap": 16, "temporal_size": 64, "temporal_overlap": 8}


def test_core_nodes_take_our_vae(assert_same: Callable[..., Outcome]) -> None:
    prompt = Prompt()
    theirs = prompt.add("VAELoader", vae_name=NAME)
    ours = prompt.add("ExactVAELoader", vae_name=NAME, dtype="float32")
    samples = prompt.add("ExactVAETestLatent", width=13, height=11, batch=2, seed=8)
    assert_same(
        prompt,
        theirs=prompt.add("VAEDecode", samples=samples, vae=theirs),
        core_decode=prompt.add("VAEDecode", samples=samples, vae=ours),
        core_tiled=prompt.add("VAEDecodeTiled", samples=samples, vae=ours, **TILES),
        our_decode=prompt.add("ExactVAEDecode", samples=samples, vae=ours),
        our_tiled=prompt.add("ExactVAEDecodeTiled", samples=samples, vae=ours, **TILES),
        applied=prompt.add("VAEDecode", samples=samples, vae=prompt.add("ExactVAEApply", vae=ours)),
    )


def test_core_encode_nodes_take_our_vae(assert_same: Callable[..., Outcome]) -> None:
    prompt = Prompt()
    theirs = prompt.add("VAELoader", vae_name=NAME)
    ours = prompt.add("ExactVAELoader", vae_name=NAME, dtype="float32")
    pixels = prompt.add("ExactVAETestImage", width=118, height=91, batch=1, seed=9)
    inpaint = {"pixels": pixels, "mask": [pixels[0], 1], "grow_mask_by": 6}
    assert_same(
        prompt,
        theirs=prompt.add("VAEEncode", pixels=pixels, vae=theirs),
        core_encode=prompt.add("VAEEncode", pixels=pixels, vae=ours),
        core_tiled=prompt.add("VAEEncodeTiled", pixels=pixels, vae=ours, **TILES),
    )
    prompt = Prompt()
    theirs = prompt.add("VAELoader", vae_name=NAME)
    ours = prompt.add("ExactVAELoader", vae_name=NAME, dtype="float32")
    inpaint["pixels"] = prompt.add("ExactVAETestImage", width=118, height=91, batch=1, seed=9)
    inpaint["mask"] = [inpaint["pixels"][0], 1]
    assert_same(
        prompt,
        theirs=prompt.add("VAEEncodeForInpaint", vae=theirs, **inpaint),
        core_node=prompt.add("VAEEncodeForInpaint", vae=ours, **inpaint),
    )


def test_the_bundled_vae_needs_no_file(client: Client) -> None:
    prompt = Prompt()
    vae = prompt.add("ExactVAELoader", vae_name="bundled", dtype="auto")
    pixels = prompt.add("ExactVAETestImage", width=128, height=96, batch=1, seed=10)
    image = prompt.add("VAEDecode", samples=prompt.add("VAEEncode", pixels=pixels, vae=vae), vae=vae)
    saved = prompt.add("SaveImage", images=image, filename_prefix="bundled")
    assert client.run(prompt).ui(saved)["images"]


@pytest.mark.parametrize("name", ["../../../secret.safetensors", "/etc/passwd", "absent.safetensors"])
def test_names_outside_the_list_are_refused(client: Client, name: str) -> None:
    prompt = Prompt()
    vae = prompt.add("ExactVAELoader", vae_name=name)
    samples = prompt.add("ExactVAETestLatent", width=8, height=8, batch=1, seed=1)
    prompt.add("PreviewImage", images=prompt.add("ExactVAEDecode", samples=samples, vae=vae))
    with pytest.raises(HostError):
        client.run(prompt)


def test_a_vae_of_unknown_structure_runs_its_own_method_and_the_node_says_why(client: Client) -> None:
    prompt = Prompt()
    vae = prompt.add("VAELoader", vae_name="pixel_space")
    pixels = prompt.add("ExactVAETestImage", width=64, height=48, batch=1, seed=11)
    encoded = prompt.add("ExactVAEEncode", pixels=pixels, vae=vae)
    decoded = prompt.add("ExactVAEDecode", samples=encoded, vae=vae)
    prompt.add("PreviewImage", images=decoded)
    outcome = client.run(prompt)
    for link in (encoded, decoded):
        told = outcome.ui(link)["exact_vae"][0]
        assert told["exact"] is False
        assert told["reason"]
        assert told["line"]
