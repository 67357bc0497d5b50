"""What ComfyUI's VAE answers, a VAE of ours answers, too: outside the host, and loaded inside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import NODE_CLASS_MAPPINGS, load_vae, save
from exact_vae.model_management.exact_vae import make_exact
from exact_vae.tests.families.table import random_model
from exact_vae.tests.families.test_video_family import make_ours
from exact_vae.tests.families.test_wan import ROW as WAN
from exact_vae.vae_model.errors import InputError
from torch import Tensor

pytestmark = pytest.mark.usefixtures("no_gradients")

NAMES = """audio_sample_rate crop_input decode decode_tiled decode_tiled_ decode_tiled_1d decode_tiled_3d device
disable_offload downscale_index_formula downscale_ratio encode encode_tiled encode_tiled_ encode_tiled_1d
encode_tiled_3d extra_1d_channel first_stage_model format_encoded get_ram_usage get_sd handles_tiling is_dynamic
latent_channels latent_dim memory_used_decode memory_used_encode model_size not_video output_channels output_device
pad_channel_value patcher prepare_decode process_input process_output size spacial_compression_decode
spacial_compression_encode temporal_compression_decode throw_exception_if_invalid upscale_index_formula upscale_ratio
vae_dtype vae_encode_crop_pixels vae_output_dtype working_dtypes""".split()  # noqa: SIM905
"""All public names of the host's class and its objects, ComfyUI 0.3.64 to 0.38."""
Z = torch.randn(1, 4, 9, 7, generator=torch.Generator().manual_seed(1))
PIXELS = torch.rand(2, 70, 59, 3, generator=torch.Generator().manual_seed(2))


@pytest.fixture(params=["outside", "inside"])
def vae(request: pytest.FixtureRequest, small_file: Path) -> Any:
    """Ours without a host, and from the loader node inside the imitated one."""
    if request.param == "outside":
        return load_vae(small_file, device="cpu", dtype="float32")
    host = request.getfixturevalue("new_host")
    host.files = {"vae": {"small.safetensors": small_file}}
    return NODE_CLASS_MAPPINGS["ExactVAELoader"]().load_vae("small.safetensors", "float32")[0]


def test_every_public_name_is_there(vae: Any, stub_host: Any) -> None:
    assert [name for name in NAMES if not hasattr(vae, name)] == []
    theirs = [
        name for name in dir(stub_host.make_vae()) if not name.startswith("_") and name not in ("host", "take_model")
    ]
    assert [name for name in theirs if not hasattr(vae, name)] == []


def test_the_case_of_the_report(vae: Any) -> None:
    """Load VAE (ExactVAE), Make VAE Exact, and what packs that crop and encode by themselves call then."""
    (made,) = NODE_CLASS_MAPPINGS["ExactVAEApply"]().apply(vae)
    cropped = made.vae_encode_crop_pixels(PIXELS)
    assert torch.equal(cropped, PIXELS[:, 3:67, 1:57])
    latent, image = made.encode(PIXELS), made.decode(Z)
    for found in (made.encode(cropped), made.encode(PIXELS, not_video=True), made.encode(PIXELS, True)):
        assert torch.equal(found, latent)
    for found in (made.decode(Z, vae_options={}), made.decode(Z, {}), made.decode_tiled_(Z, 64, 64, 16).movedim(1, -1)):
        torch.testing.assert_close(found, image, rtol=0, atol=2e-5)
    torch.testing.assert_close(made.encode_tiled_(cropped.movedim(-1, 1), 64, 64, 8), latent, rtol=0, atol=2e-5)
    torch.testing.assert_close(made.encode_tiled(PIXELS, 64, 64, not_video=False), latent, rtol=0, atol=2e-5)


def test_frames_go_through_the_inner_methods_of_videos(vae: Any) -> None:
    image, latent = vae.decode(Z), vae.encode(PIXELS[:1, :64, :56])
    frame = vae.decode_tiled_3d(Z[:, :, None], tile_t=16, tile_x=32, tile_y=32, overlap=(1, 8, 8))
    assert frame.shape == (1, 3, 1, 72, 56)
    torch.testing.assert_close(frame[:, :, 0].movedim(1, -1), image, rtol=0, atol=2e-5)
    x = PIXELS[:1, :64, :56].movedim(-1, 1)[:, :, None]
    found = vae.encode_tiled_3d(x, tile_t=16, tile_x=64, tile_y=64, overlap=(1, 16, 16))
    torch.testing.assert_close(found[:, :, 0], latent, rtol=0, atol=2e-5)
    with pytest.raises(InputError, match="expected a single frame, got a video of 3 frames"):
        vae.decode_tiled_3d(Z[:, :, None].expand(-1, -1, 3, -1, -1))


def test_sounds_are_refused_in_a_line(vae: Any) -> None:
    for name in ("decode_tiled_1d", "encode_tiled_1d"):
        with pytest.raises(InputError, match=r"expected images, got sounds of shape \(1, 64, 8\): use the VAE of that"):
            getattr(vae, name)(torch.zeros(1, 64, 8))


def test_small_questions(vae: Any) -> None:
    weights = sum(tensor.nbytes for tensor in vae.first_stage_model.state_dict().values())
    assert vae.model_size() == vae.get_ram_usage() == vae.size == weights
    assert vae.vae_output_dtype() == vae.decode(Z).dtype == vae.encode(PIXELS).dtype
    assert (vae.crop_input, vae.handles_tiling, vae.extra_1d_channel, vae.format_encoded) == (True, False, None, None)
    assert torch.float32 in vae.working_dtypes
    assert (vae.is_dynamic(), vae.pad_channel_value) == (vae.patcher is not None, None)  # the imitated patcher is


def test_who_runs_the_model_itself_has_it_loaded_first(vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(vae.host, "load_model", lambda *arguments: asked.append(arguments))
    monkeypatch.setattr(vae.host, "get_free_memory", lambda device: 1000)
    assert vae.prepare_decode(Z.shape, 300) == 3
    assert vae.prepare_decode(Z.shape, 5000) == 1
    assert vae.prepare_decode(Z.shape) == 1
    needed = vae.memory_used_decode(Z.shape, torch.float32)
    assert [arguments[1:] for arguments in asked] == [(vae.device, bytes_) for bytes_ in (300, 5000, needed)]
    assert all(arguments[0] is vae.first_stage_model for arguments in asked)


# -- options of decode ------------------------------------------------------------------------------------------------


def test_options_that_only_another_model_knows_are_refused(vae: Any) -> None:
    for call in (lambda o: vae.decode(Z, vae_options=o), lambda o: vae.decode(Z, o)):
        with pytest.raises(
            InputError, match="vae_options: expected timesteps or nothing, got num_chunks: leave it out"
        ):
            call({"num_chunks": 8000})


def test_options_tell_a_temporal_decoder_its_groups() -> None:
    vae = load_vae(make_ours(16, 32, 32, groups=16).state_dict(), device="cpu", dtype="float32")
    z = torch.randn(4, 4, 4, 3, generator=torch.Generator().manual_seed(4))
    expected = vae.decode(z, timesteps=2)
    assert torch.equal(vae.decode(z, vae_options={"timesteps": 2}), expected)
    assert torch.equal(vae.decode(z, {"timesteps": 2}), expected)
    assert (vae.decode(z) - expected).abs().max() > 1e-3


def test_not_video_makes_a_batch_one_of_images(tmp_path: Path) -> None:
    save(random_model(WAN), tmp_path / "wan.safetensors")
    vae = load_vae(tmp_path / "wan.safetensors", device="cpu", dtype="float32")
    pixels: Tensor = PIXELS[:, :32, :24]
    vae.not_video = False
    for call in (lambda **o: vae.encode(pixels, **o), lambda **o: vae.encode_tiled(pixels, 32, 32, **o)):
        assert call().shape == (1, 16, 1, 4, 3)  # of a video of two frames one is left
        assert call(not_video=True).shape == (2, 16, 1, 4, 3)
        vae.not_video = True
        assert call().shape == (2, 16, 1, 4, 3)
        assert call(not_video=False).shape == (1, 16, 1, 4, 3)
        vae.not_video = False
    cropped = vae.encode_tiled_(pixels.movedim(-1, 1))
    assert cropped.shape == (2, 16, 4, 3)
    assert vae.encode_tiled_3d(pixels.movedim(-1, 1)[:, :, None]).shape == (2, 16, 1, 4, 3)
    clip = torch.rand(1, 3, 5, 32, 24)
    latents = vae.encode_tiled_3d(clip)
    assert torch.equal(latents, vae.encode(clip.movedim(1, -1)))
    assert torch.equal(vae.decode_tiled_3d(latents), vae.decode(latents).movedim(-1, 1))
    assert vae.decode_tiled_3d(latents).shape == clip.shape
    assert vae.temporal_compression_decode() == 4


def test_videos_inner_methods_of_the_host_are_exact_on_one_frame(stub_host: Any) -> None:
    """Of a VAE of the host made exact; `test_wan_host` has them on clips."""
    from exact_vae.tests.families.test_wan_host import host_vae

    model = random_model(WAN)
    theirs = host_vae(stub_host, model)
    made = make_exact(theirs)
    z = torch.randn(2, 16, 1, 4, 3, generator=torch.Generator().manual_seed(5))
    expected = theirs.decode(z)
    found = made.decode_tiled_3d(z, tile_t=16, tile_x=16, tile_y=16, overlap=(1, 4, 4))
    assert found.shape == (2, 3, 1, 32, 24)
    torch.testing.assert_close(found.movedim(1, -1), expected, rtol=0, atol=2e-5)
    pixels = PIXELS[:1, :32, :24]
    found = made.encode_tiled_3d(pixels.movedim(-1, 1)[:, :, None])
    torch.testing.assert_close(found, theirs.encode(pixels), rtol=0, atol=1e-4)
    assert made.last_report.exact
