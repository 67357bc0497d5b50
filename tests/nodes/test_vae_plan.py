"""The Plan node names the one method that will run, and a mistake of ours is an error."""

import pytest
import torch
from exact_vae import load_vae
from exact_vae.model_management import obstacle
from exact_vae.model_management.vae_plan import plan_text


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
    monkeypatch.setattr(obstacle, "decoder_of", lambda model: model.no_such_attribute_of_ours)
    with pytest.raises(AttributeError, match="no_such_attribute_of_ours"):
        plan_text(vae, "decode", 256, 256, None)


def test_what_is_no_vae_is_named() -> None:
    assert plan_text(object(), "decode", 64, 64, None).endswith("got object")
