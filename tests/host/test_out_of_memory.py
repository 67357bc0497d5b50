"""Memory that runs out in the middle of a run costs a second attempt, never the exact result."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from exact_vae.tests.host.client import Client, HostError, Outcome, Prompt

pytestmark = pytest.mark.host

Same = Callable[..., Outcome]
VAE = {"vae_name": "random_kl.safetensors"}
SHARES = (0.1, 0.5, 0.95)
"""Where the failure comes, as shares of the allocations of a run."""


def told(outcome: Outcome, link: list[Any]) -> dict[str, int]:
    """What the node that injects failures tells of them."""
    return json.loads(outcome.ui(link)["text"][0])


@pytest.mark.parametrize("share", SHARES)
def test_decode(assert_same: Same, share: float) -> None:
    prompt, seed = (
        Prompt(),
        40 + SHARES.index(share),
    )  # another latent each time: the host tells nothing of cached nodes
    vae = prompt.add("VAELoader", **VAE)
    samples = prompt.add("ExactVAETestLatent", width=24, height=17, batch=2, seed=seed)
    core = prompt.add("VAEDecode", samples=samples, vae=vae)
    ample = prompt.add("ExactVAEDecode", samples=samples, vae=vae)
    inputs = {"samples": samples, "share": share, "once": True}
    ours = prompt.add("ExactVAETestFailingDecode", vae=vae, node="ExactVAEDecode", **inputs)
    exact = prompt.add("ExactVAEApply", vae=vae)
    applied = prompt.add("ExactVAETestFailingDecode", vae=exact, node="VAEDecode", **inputs)
    outcome = assert_same(prompt, core=core, ample=ample, ours=ours, applied=applied)
    assert told(outcome, ours)["failed"] == told(outcome, applied)["failed"] == 1
    # It went on behind the failure; how much it allocates then is the smaller plan's affair.
    assert told(outcome, ours)["retried"] > told(outcome, ours)["number"]
    assert told(outcome, applied)["retried"] > told(outcome, applied)["number"]
    report = outcome.ui(ours)["exact_vae"][0]
    assert report["exact"] is True
    assert report["plan_bytes"] <= 0.76 * outcome.ui(ample)["exact_vae"][0]["plan_bytes"]
    next_prompt_works(assert_same)


def test_encode(assert_same: Same) -> None:
    prompt = Prompt()
    vae = prompt.add("VAELoader", **VAE)
    pixels = prompt.add("ExactVAETestImage", width=163, height=136, batch=1, seed=41)
    core = prompt.add("VAEEncode", pixels=pixels, vae=vae)
    ours = prompt.add("ExactVAETestFailingEncode", pixels=pixels, vae=vae, node="ExactVAEEncode", share=0.5, once=True)
    outcome = assert_same(prompt, core=core, ours=ours)
    assert told(outcome, ours)["failed"] == 1
    next_prompt_works(assert_same)


def test_no_memory_at_all_is_one_clear_line(client: Client, assert_same: Same) -> None:
    prompt = Prompt()
    vae = prompt.add("VAELoader", **VAE)
    samples = prompt.add("ExactVAETestLatent", width=16, height=16, batch=1, seed=42)
    inputs = {"samples": samples, "vae": vae, "node": "ExactVAEDecode", "share": 0.5, "once": False}
    prompt.add("PreviewImage", images=prompt.add("ExactVAETestFailingDecode", **inputs))
    told = r"decode: expected [\d.]+ [KMG]iB of memory, ran out with .* free: free memory"
    with pytest.raises(HostError, match=told):
        client.run(prompt)
    next_prompt_works(assert_same)


def next_prompt_works(assert_same: Same) -> None:
    """A small run right after it, on the same loaded model."""
    prompt = Prompt()
    vae = prompt.add("VAELoader", **VAE)
    samples = prompt.add("ExactVAETestLatent", width=9, height=11, batch=1, seed=43)
    core = prompt.add("VAEDecode", samples=samples, vae=vae)
    assert_same(prompt, core=core, ours=prompt.add("ExactVAEDecode", samples=samples, vae=vae))
