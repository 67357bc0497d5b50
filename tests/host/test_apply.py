"""Make VAE Exact: the core's own nodes behind it are exact, and the VAE before it stays what it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import pytest
from exact_vae.tests.host.client import Client, Outcome, Prompt

pytestmark = pytest.mark.host

VAE = {"vae_name": "random_kl.safetensors"}
TILES = {"tile_size": 64, "overlap": 16, "temporal_size": 64, "temporal_overlap": 8}
DIFFERENT = 0.01
"""Far above rounding: what the core's tiles change in these images at least."""

Saved = Callable[[str], numpy.ndarray]


def run(client: Client, prompt: Prompt, kind: str, **links: Any) -> Outcome:
    """Run with a dump behind each link."""
    for name, link in links.items():
        prompt.add(f"ExactVAETestDump{kind}", name=name, **{"images" if kind == "Image" else "samples": link})
    return client.run(prompt)


def test_core_decode_nodes(client: Client, saved: Saved) -> None:
    prompt = Prompt()
    vae = prompt.add("VAELoader", **VAE)
    samples = prompt.add("ExactVAETestLatent", width=14, height=11, batch=1, seed=5)
    applied = prompt.add("ExactVAEApply", vae=vae)
    run(
        client,
        prompt,
        "Image",
        whole=prompt.add("VAEDecode", samples=samples, vae=vae),
        applied=prompt.add("VAEDecode", samples=samples, vae=applied),
        applied_tiled=prompt.add("VAEDecodeTiled", samples=samples, vae=applied, **TILES),
        core_tiled=prompt.add("VAEDecodeTiled", samples=samples, vae=vae, **TILES),
    )
    for name in ("applied", "applied_tiled"):
        numpy.testing.assert_allclose(saved(name), saved("whole"), rtol=0, atol=2e-5, err_msg=name)
    assert abs(saved("core_tiled") - saved("whole")).max() > DIFFERENT


def test_core_encode_nodes(client: Client, saved: Saved) -> None:
    prompt = Prompt()
    vae = prompt.add("VAELoader", **VAE)
    pixels = prompt.add("ExactVAETestImage", width=122, height=93, batch=1, seed=6)
    applied = prompt.add("ExactVAEApply", vae=vae)
    run(
        client,
        prompt,
        "Latent",
        whole=prompt.add("VAEEncode", pixels=pixels, vae=vae),
        applied=prompt.add("VAEEncode", pixels=pixels, vae=applied),
        applied_tiled=prompt.add("VAEEncodeTiled", pixels=pixels, vae=applied, **TILES),
        core_tiled=prompt.add("VAEEncodeTiled", pixels=pixels, vae=vae, **TILES),
    )
    span = float(saved("whole").max() - saved("whole").min())
    for name in ("applied", "applied_tiled"):
        numpy.testing.assert_allclose(saved(name), saved("whole"), rtol=0, atol=2e-5 * span, err_msg=name)
    assert abs(saved("core_tiled") - saved("whole")).max() > DIFFERENT * span


def test_the_node_that_runs_gets_the_progress(client: Client) -> None:
    prompt = Prompt()
    vae = prompt.add("ExactVAEApply", vae=prompt.add("VAELoader", **VAE))
    samples = prompt.add("ExactVAETestLatent", width=48, height=40, batch=1, seed=7)
    image = prompt.add("VAEDecode", samples=samples, vae=vae)
    prompt.add("PreviewImage", images=image)
    events = client.run(prompt).events("exact_vae.progress")
    assert {event["node"] for event in events} == {event["display_node"] for event in events} == {image[0]}
    report = events[-1]["report"]
    assert report["exact"] is True
    assert report["line"].startswith("exact · ")
    assert all(event["report"] is None for event in events[:-1])
    assert [event["done"] for event in events] == [False] * (len(events) - 1) + [True]
    assert len(events) > 1
    fractions = [event["fraction"] for event in events]
    assert fractions == sorted(fractions)
    assert all(event["line"] for event in events)
