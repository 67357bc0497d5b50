"""What the host's nodes change of a VAE counts at the next run: of ours from the loader node, of theirs made exact."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import NODE_CLASS_MAPPINGS, load_vae
from exact_vae.model_management.exact_vae import make_exact
from exact_vae.tests.exactness import assert_exact
from exact_vae.tests.families.table import ROWS, random_model
from safetensors.torch import save_file
from torch import Tensor

Host = Any
pytestmark = pytest.mark.usefixtures("one_thread")


def ours(host: Host, small_file: Path) -> Any:
    """Load VAE (ExactVAE)."""
    host.files = {"vae": {"small.safetensors": small_file}}
    return NODE_CLASS_MAPPINGS["ExactVAELoader"]().load_vae("small.safetensors", "float32")[0]


def theirs(host: Host, small_file: Path) -> Any:
    """The core's loader, and Make VAE Exact behind it."""
    from safetensors.torch import load_file

    return make_exact(host.modules["comfy.sd"].VAE(sd=load_file(small_file)))


BOTH = pytest.mark.parametrize("load", [ours, theirs])
Load = Callable[[Host, Path], Any]
Z = torch.randn(1, 4, 9, 7, generator=torch.Generator().manual_seed(1))
PIXELS = torch.rand(1, 72, 56, 3, generator=torch.Generator().manual_seed(2))


def whole(vae: Any, pixels: Tensor = PIXELS) -> Tensor:
    """What the model that is loaded now makes of the whole image."""
    with torch.inference_mode():
        return vae.first_stage_model.encode(pixels.movedim(-1, 1) * 2 - 1)


@BOTH
def test_supir_s_patched_encoder_is_the_one_that_encodes(stub_host: Host, small_file: Path, load: Load) -> None:
    """The core's SUPIR node: another patcher for one call, which patches the encoder's weights when it is loaded."""
    vae = load(stub_host, small_file)
    plain = vae.encode(PIXELS)
    assert_exact(plain, whole(vae))
    own, key = vae.patcher, "encoder.conv_out.weight"
    weight = vae.get_sd()[key]
    vae.patcher = own.clone()
    vae.patcher.add_patches({key: (weight.flip(0) * 3,)}, strength_patch=1.0, strength_model=0.0)
    patched = vae.encode(PIXELS)
    assert_exact(patched, whole(vae))
    assert (patched - plain).abs().max() > 0.1
    vae.patcher = own
    assert_exact(vae.encode(PIXELS), plain)


@BOTH
@pytest.mark.parametrize("shared", [True, False])
def test_a_vae_moved_to_another_device_is_loaded_by_its_own_patcher(
    new_host: Host, small_file: Path, load: Load, shared: bool
) -> None:
    """The core's Select VAE Device: a shallow copy, a cloned patcher, that one's model, a device."""
    new_host.clones_share_model = shared
    vae = load(new_host, small_file)
    expected = vae.decode(Z)
    moved = copy.copy(vae)
    moved.patcher = moved.patcher.clone()
    moved.first_stage_model, moved.device = moved.patcher.model, torch.device("cpu", 0)
    loaded = new_host.modules["comfy.model_management"].current_loaded_models
    for one in (moved, vae, moved):
        assert_exact(one.decode(Z), expected)
        assert loaded[-1] is one.patcher
        assert one.last_report.device == str(one.device)
    assert moved.last_report.exact
    if not shared:
        moved.first_stage_model.decoder.conv_out.bias.data.add_(0.5)
        assert (moved.decode(Z) - expected).abs().max() > 0.1
        assert_exact(vae.decode(Z), expected)


@BOTH
def test_the_dtype_is_that_of_the_object(stub_host: Host, small_file: Path, load: Load) -> None:
    vae = load(stub_host, small_file)
    expected = vae.decode(Z)
    vae.vae_dtype = torch.float64
    assert_exact(vae.decode(Z), expected)
    assert vae.last_report.dtype == "float64"


def test_free_memory_is_asked_of_the_patcher_that_is_there(new_host: Host, small_file: Path) -> None:
    vae = ours(new_host, small_file)
    other = vae.patcher.clone()
    other.get_free_memory = lambda device: 123
    vae.patcher = other
    assert vae.host.get_free_memory(torch.device("meta")) == 123


def test_the_host_can_load_the_model_of_ours_once_more(new_host: Host, small_file: Path) -> None:
    """As it does for another device: by the function and arguments that the loader left at the patcher."""
    vae = ours(new_host, small_file)
    function, arguments = vae.patcher.cached_patcher_init
    again = function(*arguments)
    assert again.model is not vae.first_stage_model
    weights = vae.get_sd()
    for name, weight in again.model.state_dict().items():
        torch.testing.assert_close(weight, weights[name], rtol=0, atol=0)


def test_the_copy_of_a_tiny_one_keeps_whose_latents_it_works_on(new_host: Host, tmp_path: Path) -> None:
    """Where only the caller told it, as the loader node does, and not the file: 0.13025 and not 1."""
    path = tmp_path / "tiny.safetensors"
    save_file(random_model(ROWS["TAESD, TAESDXL"]).state_dict(), path)
    vae = load_vae(path, latent_format="sdxl", dtype="float32")
    function, arguments = vae.patcher.cached_patcher_init
    for again in (function(*arguments), function(*arguments, disable_dynamic=True)):  # as ComfyUI 0.33.0 calls it
        assert again.model.scaling_factor == vae.first_stage_model.scaling_factor == 0.13025


def test_images_of_ours_have_the_host_s_dtype(new_host: Host, small_file: Path) -> None:
    vae = ours(new_host, small_file)
    image, latent = vae.decode(Z), vae.encode(PIXELS)
    new_host.fp16_intermediates = True
    assert vae.vae_output_dtype() == torch.float16
    torch.testing.assert_close(vae.decode(samples_in=Z), image.half(), rtol=0, atol=1e-3)
    torch.testing.assert_close(vae.encode(pixel_samples=PIXELS), latent.half(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(vae.decode_tiled(Z, 4, 4, 1), image.half(), rtol=0, atol=1e-3)
