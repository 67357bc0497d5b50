"""The imitated host itself: it must be able to catch what it is there to catch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

Host = Any


@pytest.fixture
def z() -> torch.Tensor:
    return torch.randn(1, 4, 6, 9, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["kl", "kl_quant", "taesd"])
def test_image_vaes_decode_and_encode_in_the_hosts_layout(stub_host: Host, z: torch.Tensor, kind: str) -> None:
    vae = stub_host.make_vae(kind)
    image = vae.decode(z)
    assert image.shape == (1, 48, 72, 3)
    assert image.std() > 0.01
    assert vae.encode(torch.rand(1, 50, 75, 3)).shape == (1, 4, 6, 9)
    assert stub_host.memory_required == [2178 * 6 * 9 * 64 * 4, 1767 * 48 * 72 * 4]
    assert stub_host.calls == ["decode", "encode"]


@torch.inference_mode()
def test_cast_and_patched_weights_give_the_same_image_but_not_to_who_reads_them(
    stub_host: Host, z: torch.Tensor
) -> None:
    plain = stub_host.make_vae().decode(z)
    assert not stub_host.fetched
    patched = stub_host.make_vae(patched=True)
    torch.testing.assert_close(patched.decode(z), plain, rtol=0, atol=0)
    assert stub_host.fetched["decoder.conv_in"] == 1
    for layer in patched.first_stage_model.modules():
        layer.weight_function = layer.bias_function = ()
    assert (patched.decode(z) - plain).abs().max() > 0.01


@torch.inference_mode()
def test_a_released_weight_is_of_no_use(new_host: Host) -> None:
    ops, vae = new_host.modules["comfy.ops"], new_host.make_vae(cast=True)
    layer = vae.first_stage_model.decoder.conv_in
    with ops.CastBiasWeightContext(layer, torch.zeros(1), offloadable=True) as (weight, bias):
        assert new_host.pinned["decoder.conv_in"] == 1
        torch.testing.assert_close(weight, layer.weight.data)
    assert new_host.pinned["decoder.conv_in"] == 0
    assert weight.isnan().all()
    assert bias.isnan().all()
    assert not layer.weight.isnan().any()


def test_the_cancel_is_an_exception_only_in_the_old_host(stub_host: Host) -> None:
    assert issubclass(stub_host.interrupt, Exception) is not stub_host.new
    stub_host.interrupt_at = 2
    check = stub_host.modules["comfy.model_management"].throw_exception_if_processing_interrupted
    check()
    with pytest.raises(stub_host.interrupt):
        check()
    check()


def test_room_beyond_what_is_free_drives_out_the_diffusion_model(stub_host: Host) -> None:
    management, patcher = stub_host.modules["comfy.model_management"], stub_host.make_vae().patcher
    stub_host.free_bytes, stub_host.evictable_bytes = 2**30, 2**32
    management.load_models_gpu([patcher], memory_required=2**29)
    assert stub_host.evictions == []
    management.load_models_gpu([patcher], memory_required=2**31)
    assert stub_host.evictions == [2**31]
    assert management.get_free_memory() == 2**30 + 2**32


@torch.inference_mode()
def test_tiles_differ_from_the_whole_image(stub_host: Host) -> None:
    vae = stub_host.make_vae()
    z = torch.randn(1, 4, 24, 24, generator=torch.Generator().manual_seed(1))
    assert (vae.decode_tiled(z, 8, 8, 2) - vae.decode(z)).abs().max() > 0.01


@torch.inference_mode()
def test_video_takes_frames_for_time_and_pixels_pass_through(stub_host: Host) -> None:
    video = stub_host.make_vae("video")
    assert video.encode(torch.rand(5, 32, 48, 3)).shape == (1, 16, 2, 4, 6)
    assert video.decode(torch.rand(1, 16, 2, 4, 6)).shape == (1, 5, 32, 48, 3)
    assert video.temporal_compression_decode() == 4
    pixels = torch.rand(1, 32, 48, 3)
    flat = stub_host.make_vae("pixel_space")
    torch.testing.assert_close(flat.decode(flat.encode(pixels)), pixels)
    with pytest.raises(RuntimeError, match="invalid"):
        stub_host.make_vae("invalid").decode(pixels)


def test_only_the_new_host_has_the_new_names(stub_host: Host) -> None:
    vae = stub_host.make_vae()
    assert hasattr(vae.patcher, "get_free_memory") is stub_host.new
    assert hasattr(stub_host.modules["comfy.ops"], "CastBiasWeightContext") is stub_host.new
    assert ("comfy.model_prefetch" in stub_host.modules) is stub_host.new
    image = torch.zeros(1, 3, 4, 4)
    assert (vae.process_output(image) is image) is stub_host.new


@torch.inference_mode()
def test_a_patched_object_takes_effect_when_the_model_is_loaded(stub_host: Host, z: torch.Tensor) -> None:
    vae = stub_host.make_vae()
    before = vae.decode(z)
    twin = vae.patcher.clone()
    assert twin.model is vae.first_stage_model
    twin.add_object_patch("decoder.conv_out", stub_host.make_vae(seed=1).first_stage_model.decoder.conv_out)
    vae.patcher = twin
    assert (vae.decode(z) - before).abs().max() > 0.01


@torch.inference_mode()
def test_a_vae_is_made_from_a_state_dict(stub_host: Host, z: torch.Tensor, state: dict[str, torch.Tensor]) -> None:
    vae = stub_host.modules["comfy.sd"].VAE(sd=state)
    assert vae.decode(z).shape == (1, 48, 72, 3)
