"""The user's cancel ends a large run at once, and what comes after it is as if nothing had happened."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from exact_vae.tests.host.client import Client, Outcome, Prompt

pytestmark = pytest.mark.host

VAE = {"vae_name": "random_kl.safetensors"}
SECONDS = 2.0
CASES = {
    "decode": ("ExactVAEDecode", False),
    "encode": ("ExactVAEEncode", False),
    "applied": ("VAEDecode", True),
    "in little memory": ("ExactVAEDecode", False),
}


@pytest.mark.parametrize("case", CASES)
def test_cancel_in_the_middle(
    client: Client, assert_same: Callable[..., Outcome], case: str, record_property: Callable[..., None]
) -> None:
    kind, applied = CASES[case]
    prompt = Prompt()
    vae = prompt.add("VAELoader", **VAE)
    if applied:
        vae = prompt.add("ExactVAEApply", vae=vae)
    memory = {"memory": 0.5} if case == "in little memory" else {}
    if "Decode" in kind:
        samples = prompt.add("ExactVAETestLatent", width=128, height=128, batch=1, seed=20)
        prompt.add("PreviewImage", images=prompt.add(kind, samples=samples, vae=vae, **memory))
    else:
        pixels = prompt.add("ExactVAETestImage", width=1024, height=1024, batch=1, seed=20)
        latent = prompt.add(kind, pixels=pixels, vae=vae)
        prompt.add("ExactVAETestDumpLatent", samples=latent, name="never")
    number = client.submit(prompt)

    def well_under_way(kind: str, data: dict[str, object]) -> bool:
        return kind == "exact_vae.progress" and 0.1 < float(str(data["fraction"])) < 0.9

    started = client.follow(number, 300, until=well_under_way)
    assert started.status == "running", "it ended before it could be cancelled"
    time.sleep(0.13)  # a message comes just before the run looks for a cancel: not then, but somewhere in between
    asked = time.monotonic()
    client.post("/interrupt")
    ended = client.follow(number, 120)
    seconds = time.monotonic() - asked
    print(f"\ncancel ({case}): {seconds:.2f} s")
    record_property("cancel_seconds", seconds)
    assert ended.status == "execution_interrupted"
    assert seconds < SECONDS
    last = ended.events("exact_vae.progress")[-1]
    assert (last["done"], last["report"], last["stopped"]) == (True, None, "cancelled")
    assert_next_prompt_works(assert_same)


def assert_next_prompt_works(assert_same: Callable[..., Outcome]) -> None:
    """A small run right after; the model that was in use when the cancel came is whole."""
    prompt = Prompt()
    vae = prompt.add("VAELoader", **VAE)
    samples = prompt.add("ExactVAETestLatent", width=11, height=13, batch=1, seed=21)
    core = prompt.add("VAEDecode", samples=samples, vae=vae)
    assert_same(prompt, core=core, ours=prompt.add("ExactVAEDecode", samples=samples, vae=vae))


def test_two_prompts_in_a_row(client: Client) -> None:
    numbers: list[str] = []
    for seed in (30, 31):
        prompt = Prompt()
        vae = prompt.add("ExactVAEApply", vae=prompt.add("VAELoader", **VAE))
        samples = prompt.add("ExactVAETestLatent", width=16, height=16, batch=1, seed=seed)
        prompt.add("PreviewImage", images=prompt.add("ExactVAEDecode", samples=samples, vae=vae))
        numbers.append(client.submit(prompt))
    for number in numbers:
        assert client.follow(number).status == "execution_success"
