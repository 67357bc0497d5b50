"""Weights that a run makes anew for each layer are in its plan; those that it can use as they are, it does not copy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exact_vae import load_vae
from exact_vae.benchmarks.meter import LiveTensorMeter
from exact_vae.model_management.exact_vae import make_exact
from exact_vae.tests.exactness import assert_exact
from exact_vae.tests.families.table import Row, levels, random_model, wan
from exact_vae.vae_model.checkpoint.save import to_layout
from exact_vae.vae_model.errors import MemoryBudgetError
from torch import Tensor

Host = Any
WIDE = Row("wan", wan(4, levels(64, 128, 128, 128)), 4, 8)
"""Of few pixels its weights are the larger part."""
pytestmark = pytest.mark.usefixtures("one_thread")


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def least_memory(vae: Any, z: Tensor) -> int:
    vae.memory_limit = 1
    with pytest.raises(MemoryBudgetError) as refused:
        vae.decode(z)
    return refused.value.needed_bytes or 0


def assert_within_the_plan(vae: Any, z: Tensor) -> Tensor:
    with LiveTensorMeter() as meter:
        images = vae.decode(z)
    assert vae.last_report.exact
    assert meter.peak_bytes - images.nbytes <= vae.last_report.plan.peak_bytes
    return images


@pytest.mark.parametrize("least", [False, True])
@pytest.mark.parametrize("case", ["picture", "clip"])
def test_weights_of_another_dtype_than_the_run_s(case: str, least: bool) -> None:
    vae: Any = load_vae(to_layout(random_model(WIDE), "wan"), device="cpu", dtype="bfloat16")
    z = noise(1, 4, 2 if case == "clip" else 1, 3, 2)
    vae.vae_dtype = torch.float32
    vae.memory_limit = least_memory(vae, z) if least else None
    made = assert_within_the_plan(vae, z)
    vae.memory_limit = None
    vae.first_stage_model.float()
    assert_exact(made, vae.decode(z))


@pytest.mark.parametrize("least", [False, True])
@pytest.mark.parametrize("how", ["plain", "patched", "lent", "other dtype"])
def test_weights_that_a_host_hands_out(stub_host: Host, how: str, least: bool) -> None:
    bundled: Any = load_vae("bundled", device="cpu", dtype="float32")
    theirs = stub_host.modules["comfy.sd"].VAE(sd=bundled.first_stage_model.state_dict())
    stub_host.lends = how == "lent"
    z = noise(1, bundled.latent_channels, 3, 2)
    if how == "other dtype":
        theirs.first_stage_model.bfloat16()
    for layer in theirs.first_stage_model.modules():
        if how == "patched" and hasattr(layer, "weight_function"):
            layer.weight_function = layer.bias_function = (torch.clone,)
    vae = make_exact(theirs)
    vae.memory_limit = least_memory(vae, z) if least else None
    assert_within_the_plan(vae, z)
    assert stub_host.fetched.total() > 0


def test_a_stored_weight_is_handed_on_and_a_lent_one_is_copied(new_host: Host) -> None:
    from exact_vae.model_management.comfy_host import ComfyHost

    vae = new_host.make_vae(cast=True)
    layer, host = vae.first_stage_model.decoder.conv_in, ComfyHost(vae.patcher)
    for lends in (False, True):
        new_host.lends = lends
        weight, bias = host.weights(layer, torch.zeros(1))
        assert (weight is layer.weight) is not lends
        assert (bias is layer.bias) is not lends
        torch.testing.assert_close(weight, layer.weight, rtol=0, atol=0)
    assert not +new_host.pinned
