"""Ten ways in which other packs use a VAE, replayed against a VAE made exact and one of ours; each must go on working.

The packs' code is not here, only what they do to the object. Every test runs in both imitated hosts.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from exact_vae.tests.exactness import assert_exact
from torch import Tensor

Host = Any


@pytest.fixture(params=["theirs", "ours"])
def made(stub_host: Host, one_thread: None, request: pytest.FixtureRequest) -> Any:
    """An exact VAE whose weights only the host's casting gives right, and the same model from the loader of ours."""
    from exact_vae import load_vae
    from exact_vae.model_management.exact_vae import make_exact

    if request.param == "theirs":
        return make_exact(stub_host.make_vae(patched=True))
    state = {name: tensor.clone() for name, tensor in stub_host.make_vae().get_sd().items()}
    return load_vae(state, dtype="float32", config={"norm_num_groups": 8})


@pytest.fixture
def plain(stub_host: Host) -> Any:
    """The same VAE as the host made it."""
    return stub_host.make_vae(patched=True)


@pytest.fixture
def z() -> Tensor:
    """A latent with a slope and an outlier, of a size that no tile divides."""
    z = torch.randn(1, 4, 13, 19, generator=torch.Generator().manual_seed(7))
    z += torch.linspace(-1, 1, 19)
    z[0, 1, 4, 6] = 8.0
    return z


@pytest.fixture
def pixels() -> Tensor:
    """Images whose sides are no multiples of 8."""
    return torch.rand(3, 77, 107, 3, generator=torch.Generator().manual_seed(8))


@torch.inference_mode()
def test_01_detailers_call_the_cores_decode_with_a_latent_of_any_origin(made: Any, plain: Any, z: Tensor) -> None:
    """Impact-Pack: `VAEDecode().decode(vae, samples)`, with one positional argument reaching the VAE."""
    image = made.decode(z)
    assert_exact(image, plain.decode(z))
    assert made.last_report.exact
    assert image.shape == (1, 104, 152, 3)


@torch.inference_mode()
def test_02_upscalers_call_the_cores_tiled_nodes(made: Any, plain: Any, z: Tensor, pixels: Tensor) -> None:
    """Ultimate SD Upscale: `VAEDecodeTiled().decode(vae, samples, tile_size)` becomes keywords, some of them None."""
    tile = 64 // made.spacial_compression_decode()
    image = made.decode_tiled(z, tile_x=tile, tile_y=tile, overlap=tile // 4, tile_t=None, overlap_t=None)
    assert_exact(image, plain.decode(z))
    assert (plain.decode_tiled(z, tile_x=tile, tile_y=tile, overlap=tile // 4) - image).abs().max() > 0.01
    latent = made.encode_tiled(pixels, tile_x=64, tile_y=64, overlap=16, tile_t=None, overlap_t=None)
    assert_exact(latent, plain.encode(pixels))


@torch.inference_mode()
def test_03_video_helpers_crop_and_run_part_of_a_batch_at_a_time(made: Any, plain: Any, pixels: Tensor) -> None:
    """VideoHelperSuite: sub-batches, cropped by the VAE's own method, joined afterwards."""
    cropped = made.vae_encode_crop_pixels(pixels)
    assert cropped.shape == (3, 72, 104, 3)
    latents = torch.cat([made.encode(cropped[i : i + 2]) for i in range(0, 3, 2)])
    assert_exact(latents, plain.encode(pixels))
    images = torch.cat([made.decode(part) for part in latents.split(2)])
    assert_exact(images, plain.decode(plain.encode(pixels)))


def test_04_video_packs_read_the_scales_and_the_estimate(made: Any, stub_host: Host) -> None:
    """LTXVideo: `downscale_index_formula`, `memory_used_decode(shape, dtype)`, parts of `first_stage_model`."""
    assert made.downscale_index_formula is None
    needed = made.memory_used_decode((1, 4, 64, 64), torch.bfloat16)
    assert isinstance(needed, int)
    assert 0 < needed < stub_host.make_vae().memory_used_decode((1, 4, 64, 64), torch.bfloat16)
    assert made.memory_used_encode((1, 3, 512, 512), torch.bfloat16) > 0
    management = stub_host.modules["comfy.model_management"]
    management.load_models_gpu([made.patcher], memory_required=needed)
    video_vae = stub_host.make_vae("video")
    from exact_vae.model_management.exact_vae import make_exact

    made_video = make_exact(video_vae)
    assert made_video.downscale_index_formula == (4, 8, 8)
    shape = (1, 16, 3, 32, 32)
    assert made_video.memory_used_decode(shape, torch.float32) == video_vae.memory_used_decode(shape, torch.float32)


@torch.inference_mode()
def test_05_toolkits_swap_the_patcher_and_patch_objects(made: Any, plain: Any, z: Tensor, stub_host: Host) -> None:
    """KJNodes: `patcher.clone()`, `add_object_patch`, `first_stage_model.to`, `vae_dtype`, `process_output`."""
    assert made.vae_dtype is torch.float32
    assert made.upscale_ratio == 8
    assert made.output_device.type == "cpu"
    other = stub_host.make_vae(seed=3).first_stage_model.decoder.conv_out
    for vae in (made, plain):
        vae.first_stage_model.to(vae.device)
        patcher = vae.patcher.clone()
        patcher.add_object_patch("decoder.conv_out", other)
        vae.patcher, vae.first_stage_model = patcher, patcher.model
    before = stub_host.make_vae(patched=True).decode(z)
    image = made.decode(z)
    assert_exact(image, plain.decode(z))
    assert (image - before).abs().max() > 0.01
    raw = made.first_stage_model.decode(z)
    assert_exact(made.process_output(raw).movedim(1, -1), image)


@torch.inference_mode()
def test_06_helpers_set_options_on_the_vae_and_ask_for_its_factors(made: Any, plain: Any, z: Tensor) -> None:
    """VAE-Utils: `disable_offload = True`, both compression getters, `temporal_compression_decode()`."""
    made.disable_offload = True
    assert made.spacial_compression_decode() == made.spacial_compression_encode() == 8
    assert made.temporal_compression_decode() is None
    made.process_output = lambda image: image.neg_()
    assert_exact(made.decode(z), -plain.first_stage_model.decode(z).movedim(1, -1))


@torch.inference_mode()
def test_07_tilers_that_replace_the_decoders_forward_still_get_their_way(made: Any, z: Tensor, stub_host: Host) -> None:
    """TiledDiffusion: its own `first_stage_model.decoder.forward`, then `vae.decode`: theirs runs, and we say so."""
    decoder = made.first_stage_model.decoder
    own = decoder.forward
    calls: list[torch.Size] = []

    def theirs(z: Tensor, **options: Any) -> Tensor:
        calls.append(z.shape)
        return own(z, **options) * 0.5

    decoder.forward = theirs
    image = made.decode(z)
    assert calls == [z.shape]
    own_method = hasattr(made, "exact_host")  # ours runs as a whole instead, and is exact all the same
    assert stub_host.calls[-1:] == (["decode"] if own_method else [])
    assert made.last_report.exact is not own_method
    assert made.last_report.reason
    decoder.forward = own
    del decoder.forward
    assert (made.decode(z) - image).abs().max() > 0.01
    assert made.last_report.exact


@torch.inference_mode()
def test_08_samplers_call_the_model_directly_and_walk_it(made: Any, plain: Any, z: Tensor) -> None:
    """Others: `vae.first_stage_model.decode(x)`, `encoder.num_resolutions`, state dicts."""
    raw = made.first_stage_model.decode(z)
    torch.testing.assert_close(raw, plain.first_stage_model.decode(z), rtol=0, atol=0)
    assert made.first_stage_model.encoder.num_resolutions == 4
    assert made.get_sd().keys() == plain.get_sd().keys()
    assert_exact(made.decode(z), made.process_output(raw).movedim(1, -1))


@torch.inference_mode()
def test_09_packs_copy_the_vae_deeply_or_as_the_core_does(made: Any, plain: Any, z: Tensor, stub_host: Host) -> None:
    """Deep copies, and the core's idiom for another device: a shallow copy with a cloned patcher and its model."""
    stub_host.clones_share_model = False
    expected = plain.decode(z)
    deep = copy.deepcopy(made)
    assert deep.first_stage_model is not made.first_stage_model
    shallow = copy.copy(made)
    shallow.patcher = shallow.patcher.clone()
    shallow.first_stage_model = shallow.patcher.model
    shallow.device = made.device
    for twin in (deep, shallow):
        assert_exact(twin.decode(z), expected)
        assert twin.last_report.exact
    shallow.first_stage_model.decoder.conv_out.bias.data.add_(0.5)
    if shallow.first_stage_model is not made.first_stage_model:
        assert (shallow.decode(z) - expected).abs().max() > 0.1
        assert_exact(made.decode(z), expected)


@torch.inference_mode()
def test_10_seamless_texture_packs_flip_the_padding(made: Any, plain: Any, z: Tensor) -> None:
    """Convolutions of `first_stage_model` become circular between two runs, and zero-padded again afterwards."""
    before = made.decode(z)
    for mode in ("circular", "zeros"):
        for vae in (made, plain):
            for layer in vae.first_stage_model.modules():
                if isinstance(layer, torch.nn.Conv2d):
                    layer.padding_mode = mode
                    layer._reversed_padding_repeated_twice = [n for n in reversed(layer.padding) for _ in range(2)]
        image = made.decode(z)
        assert_exact(image, plain.decode(z))
        assert bool((image - before).abs().max() > 0.01) is (mode == "circular")
    assert made.last_report.exact
