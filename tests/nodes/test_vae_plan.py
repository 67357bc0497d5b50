"""The Plan node names the one method that will run, and a mistake of ours is an error."""

from typing import Any

import pytest
import torch
from exact_vae import load_vae
from exact_vae.model_management.exact_vae import make_exact
from exact_vae.model_management.vae_plan import plan_text
from exact_vae.nodes import NODE_CLASS_MAPPINGS
from exact_vae.vae_model.runs import run


def test_a_vae_of_ours_with_a_hook_runs_untiled_and_the_plan_says_so() -> None:
    vae = load_vae("bundled", device="cpu", dtype="float32")
    assert plan_text(vae, "decode", 256, 256, None).startswith("decode 256 x 256, float32, cpu: resident")
    handle = vae.first_stage_model.decoder.conv_in.register_forward_hook(lambda *_: None)
    try:
        text = plan_text(vae, "decode", 256, 256, None)
        vae.decode(torch.zeros(1, vae.latent_channels, 8, 8))
    finally:
        handle.remove()
    assert vae.last_report is not None
    assert text == f"This VAE runs {vae.last_report.method}: {vae.last_report.reason}"
    assert text == "This VAE runs untiled: conv_in: expected a layer without hooks, got some"


def test_a_mistake_of_ours_is_no_property_of_the_vae(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = load_vae("bundled", device="cpu", dtype="float32")
    monkeypatch.setattr(run, "decoder_of", lambda model: model.no_such_attribute_of_ours)
    with pytest.raises(AttributeError, match="no_such_attribute_of_ours"):
        plan_text(vae, "decode", 256, 256, None)


def test_what_is_no_vae_is_named() -> None:
    assert plan_text(object(), "decode", 64, 64, None).endswith("got object")


@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_nor_does_it_send_a_vae_of_the_host_to_its_own_method(
    stub_host: Any, monkeypatch: pytest.MonkeyPatch, direction: str
) -> None:
    """The Apply node, a run, the host's question for memory and the plan: each of them tells of the mistake."""
    vae = stub_host.make_vae()
    made, apply = make_exact(vae), NODE_CLASS_MAPPINGS["ExactVAEApply"]()
    x = torch.zeros(1, 4, 4, 4) if direction == "decode" else torch.zeros(1, 32, 32, 3)
    shape = x.shape if direction == "decode" else x.movedim(-1, 1).shape
    monkeypatch.setattr(run, f"{direction}r_of", lambda model, *more: model.no_such_attribute_of_ours)
    stub_host.forget()
    for call in (
        lambda: apply.apply(stub_host.make_vae()),
        lambda: getattr(made, direction)(x),
        lambda: getattr(made, f"{direction}_tiled")(x),
        lambda: getattr(made, f"memory_used_{direction}")(shape, torch.float32),
        lambda: plan_text(made, direction, 64, 64, None),
    ):
        with pytest.raises(Exception, match="no_such_attribute_of_ours") as caught:
            call()
        assert isinstance(caught.value, AttributeError) or isinstance(caught.value.__cause__, AttributeError)
    assert stub_host.calls == []  # none of the host's own methods ran


@pytest.mark.parametrize("kind", ["video", "self_tiling"])
def test_a_vae_that_runs_by_its_own_method_has_no_plan(stub_host: Any, kind: str) -> None:
    """The node says what a run would say, also of VAEs whose modules the engine could read."""
    if kind == "self_tiling" and not stub_host.new:
        pytest.skip("older hosts have no VAE that tiles itself")
    made = make_exact(stub_host.make_vae(kind))
    text = plan_text(made, "decode", 64, 64, None)
    made.decode(torch.zeros((1, 16, 1, 4, 4) if kind == "video" else (1, made.latent_channels, 16, 16)))
    assert made.last_report.method == "host"
    assert text == f"This VAE runs by its own method: {made.last_report.reason}"
