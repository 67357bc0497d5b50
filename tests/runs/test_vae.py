"""The VAE object: shapes, ranges, equality with the plain module, ComfyUI's names, and what it says to bad input."""

import copy
from pathlib import Path

import pytest
import torch
from exact_vae import VAE, load_vae
from exact_vae.tests.exactness import assert_exact
from exact_vae.vae_model.checkpoint.load import LoadedModel
from exact_vae.vae_model.errors import InputError
from torch import Tensor

CPU = torch.device("cpu")


def latents(batch: int = 1, height: int = 3, width: int = 5) -> Tensor:
    """A ramp, noise and one outlier per image: means and variances that differ from place to place."""
    z = torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(batch))
    z += torch.linspace(-2, 2, width)
    z[:, 1, 0, 0] = 9
    return z


def images(batch: int = 1, height: int = 24, width: int = 40) -> Tensor:
    return torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(batch))


def test_decode(small_vae: VAE) -> None:
    out = small_vae.decode(latents(2))
    assert out.shape == (2, 24, 40, 3)
    assert out.dtype == torch.float32
    assert out.device == CPU
    assert 0 <= float(out.min()) < float(out.max()) <= 1


def test_encode(small_vae: VAE) -> None:
    out = small_vae.encode(images(2))
    assert out.shape == (2, 4, 3, 5)
    assert out.dtype == torch.float32
    assert out.device == CPU


METHODS = pytest.mark.parametrize("method", ["exact", "untiled"])


def assert_same(actual: Tensor, expected: Tensor, method: str) -> None:
    """Untiled: to the bit. Exact: within the project's bound."""
    assert_exact(actual, expected)
    assert method == "exact" or torch.equal(actual, expected)


@METHODS
def test_decode_is_the_plain_module(small_vae: VAE, method: str) -> None:
    z = latents()
    with torch.inference_mode():
        raw = small_vae.first_stage_model.decode(z)  # type: ignore[operator]
    assert_same(small_vae.decode(z, method), ((raw + 1) / 2).clamp(0, 1).movedim(1, -1), method)


@METHODS
def test_encode_is_the_plain_module_s_posterior_mean(small_vae: VAE, method: str) -> None:
    x = images()
    with torch.inference_mode():
        moments, _ = small_vae.first_stage_model.encode(x.movedim(-1, 1) * 2 - 1, unregularized=True)  # type: ignore[operator]
    assert moments.shape[1] == 8
    assert_same(small_vae.encode(x, method), moments[:, :4], method)
    assert torch.equal(small_vae.encode(x, method), small_vae.encode(x, method))


def test_exact_is_the_default(small_vae: VAE) -> None:
    z, x = latents(), images()
    assert torch.equal(small_vae.decode(z), small_vae.decode(z, "exact"))
    assert torch.equal(small_vae.encode(x), small_vae.encode(x, "exact"))
    assert not torch.equal(small_vae.decode(z), small_vae.decode(z, "blend", tile_size=16))


@METHODS
def test_batches_of_one_to_five_equal_their_items(small_vae: VAE, method: str) -> None:
    z, x = latents(5), images(5)
    decoded = torch.cat([small_vae.decode(one, method) for one in z.split(1)])
    encoded = torch.cat([small_vae.encode(one, method) for one in x.split(1)])
    # A convolution library may sum in another order for another batch size: float32 rounding over some 40 layers.
    for batch in range(1, 6):
        torch.testing.assert_close(small_vae.decode(z[:batch], method), decoded[:batch], rtol=0, atol=2e-5)
        torch.testing.assert_close(small_vae.encode(x[:batch], method), encoded[:batch], rtol=0, atol=2e-5)


@METHODS
@pytest.mark.parametrize(("height", "width"), [(70, 90), (71, 64), (15, 8), (23, 47)])
def test_odd_sizes_are_cropped_in_the_middle_like_comfyui(small_vae: VAE, height: int, width: int, method: str) -> None:
    x = images(1, height, width)
    top, left = (height % 8) // 2, (width % 8) // 2
    middle = x[:, top : top + height // 8 * 8, left : left + width // 8 * 8]
    found = small_vae.encode(x, method)
    assert found.shape == (1, 4, height // 8, width // 8)
    assert torch.equal(found, small_vae.encode(middle, method))


def test_alpha_is_dropped(small_vae: VAE) -> None:
    x = images()
    assert torch.equal(small_vae.encode(torch.cat([x, torch.rand(1, 24, 40, 1)], dim=-1)), small_vae.encode(x))


def test_a_single_frame_is_an_image(small_vae: VAE) -> None:
    assert torch.equal(small_vae.decode(latents(2)[:, :, None]), small_vae.decode(latents(2)))


@METHODS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_input_types(small_vae: VAE, dtype: torch.dtype, method: str) -> None:
    z, x = latents().to(dtype), images().to(dtype)
    assert torch.equal(small_vae.decode(z, method), small_vae.decode(z.float(), method))
    assert torch.equal(small_vae.encode(x, method), small_vae.encode(x.float(), method))
    assert z.dtype == dtype


def test_inputs_stay_as_they_are(small_vae: VAE) -> None:
    z, x = latents(), images()
    before_z, before_x = z.clone(), x.clone()
    for method in ("exact", "untiled", "blend"):
        small_vae.decode(z, method)
        small_vae.encode(x, method)
    assert torch.equal(z, before_z)
    assert torch.equal(x, before_x)


@METHODS
def test_bfloat16(small_vae: VAE, small_loaded_bfloat16: VAE, method: str) -> None:
    vae = small_loaded_bfloat16
    assert vae.vae_dtype == torch.bfloat16
    assert {tensor.dtype for tensor in vae.get_sd().values()} == {torch.bfloat16}
    decoded, encoded = vae.decode(latents(), method), vae.encode(images(), method)
    assert decoded.dtype == encoded.dtype == torch.float32
    # bfloat16 keeps 8 bits, an error of 2^-9 per operation; random signs over some 40 layers make it several percent.
    torch.testing.assert_close(decoded, small_vae.decode(latents()), rtol=0, atol=0.05)
    torch.testing.assert_close(encoded, small_vae.encode(images()), rtol=0, atol=0.05)
    assert not torch.equal(decoded, small_vae.decode(latents()))


@pytest.fixture
def small_loaded_bfloat16(small_file: str) -> VAE:
    return load_vae(small_file, device="cpu", dtype="bfloat16")


def test_the_names_of_comfyui(small_vae: VAE) -> None:
    vae = small_vae
    assert vae.spacial_compression_decode() == vae.spacial_compression_encode() == 8
    assert vae.temporal_compression_decode() is None
    assert vae.downscale_ratio == vae.upscale_ratio == 8
    assert vae.latent_channels == 4
    assert vae.output_channels == 3
    assert vae.device == vae.output_device == CPU
    assert vae.vae_dtype == torch.float32
    assert isinstance(vae.first_stage_model, torch.nn.Module)
    assert not vae.first_stage_model.training
    assert vae.get_sd().keys() == vae.first_stage_model.state_dict().keys()
    assert "decoder.up.0.block.0.conv1.weight" in vae.get_sd()
    assert vae.memory_used_decode((1, 4, 8, 8), torch.float32) > 0
    assert vae.memory_used_encode((1, 3, 64, 64), torch.float32) > 0
    vae.throw_exception_if_invalid()
    assert vae.decode_tiled(latents(), tile_x=8, tile_y=8, overlap=2, tile_t=4, overlap_t=1).shape == (1, 24, 40, 3)
    assert vae.encode_tiled(images(), tile_x=64, tile_y=64, overlap=8, tile_t=4, overlap_t=1).shape == (1, 4, 3, 5)
    assert vae.decode_tiled(latents()).shape == (1, 24, 40, 3)
    assert vae.encode_tiled(images()).shape == (1, 4, 3, 5)


def test_ranges_in_and_out(small_vae: VAE) -> None:
    x = torch.tensor([0.0, 0.25, 1.0])
    assert small_vae.process_input(x).tolist() == [-1, -0.5, 1]
    assert x.tolist() == [0, 0.25, 1]
    y = torch.tensor([-3.0, -1.0, 0.0, 1.0, 2.0])
    assert small_vae.process_output(y) is y
    assert y.tolist() == [0, 0, 0.5, 1, 1]


@METHODS
def test_the_attention_is_the_host_s(small_vae: VAE, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    calls: list[torch.Size] = []
    monkeypatch.setattr(small_vae.host, "attend", lambda q, k, v: [calls.append(q.shape), v][1])
    again = VAE(small_vae.loaded, small_vae.host, device=CPU, dtype=torch.float32, output_device=CPU)
    again.decode(latents(), method)
    assert calls == [(1, 15, 64)]


def test_without_a_model_it_says_so(small_vae: VAE) -> None:
    vae = copy.copy(small_vae)
    vae.first_stage_model = None  # type: ignore[assignment]
    with pytest.raises(RuntimeError) as caught:
        vae.throw_exception_if_invalid()
    assert str(caught.value) == "VAE: expected a loaded model, got none: load a VAE file"


def test_a_shallow_copy_is_a_vae_of_its_own(small_vae: VAE) -> None:
    other = copy.copy(small_vae)
    assert torch.equal(other.decode(latents()), small_vae.decode(latents()))
    other.first_stage_model = copy.deepcopy(small_vae.first_stage_model)
    with torch.no_grad():
        other.first_stage_model.decoder.conv_out.weight.zero_()  # type: ignore[union-attr]
        other.first_stage_model.decoder.conv_out.bias.zero_()  # type: ignore[union-attr]
    assert torch.equal(other.decode(latents()), torch.full((1, 24, 40, 3), 0.5))
    assert not torch.equal(small_vae.decode(latents()), other.decode(latents()))


BAD_LATENTS = {
    "wrong channels": (
        torch.zeros(1, 16, 4, 4),
        "latents: expected 4 channels for this VAE, got 16: use the VAE that belongs to the model",
    ),
    "rank 3": (
        torch.zeros(4, 4, 4),
        "latents: expected (batch, 4, height, width), got (4, 4, 4): "
        "the batch axis is missing, add it by samples[None]",
    ),
    "video": (
        torch.zeros(1, 4, 2, 4, 4),
        "latents: expected a single frame, got a video of 2 frames: this VAE is one of single images; pass one frame",
    ),
    "empty": (
        torch.zeros(0, 4, 4, 4),
        "latents: expected (batch, 4, height, width), got (0, 4, 4, 4): pass at least one, the batch is empty",
    ),
    "NaN": (
        torch.zeros(3, 4, 2, 2).index_put((torch.tensor(1), torch.tensor(0)), torch.tensor(torch.nan)),
        "latents: expected finite numbers, got NaN in item 1 of 3: sample again or lower the guidance",
    ),
    "infinity": (
        torch.zeros(3, 4, 2, 2).index_put((torch.tensor(2), torch.tensor(0)), torch.tensor(-torch.inf)),
        "latents: expected finite numbers, got infinity in item 2 of 3: sample again or lower the guidance",
    ),
}
BAD_IMAGES = {
    "grey": (
        torch.zeros(1, 16, 16, 1),
        "pixels: expected (batch, height, width, 3) in 0..1, got (1, 16, 16, 1): convert the image to 3 channels",
    ),
    "rank 3": (
        torch.zeros(16, 16, 3),
        "pixels: expected (batch, height, width, 3) in 0..1, got (16, 16, 3): "
        "the batch axis is missing, add it by pixels[None]",
    ),
    "no image": (
        torch.zeros(0, 16, 16, 3),
        "pixels: expected (batch, height, width, 3) in 0..1, got (0, 16, 16, 3): pass at least one, the batch is empty",
    ),
    "too small": (
        torch.zeros(1, 7, 100, 3),
        "pixels: expected at least 8 x 8, one latent cell, got 100 x 7: enlarge the image",
    ),
    "bytes": (
        torch.zeros(1, 16, 16, 3, dtype=torch.uint8),
        "pixels: expected floats in 0..1, got torch.uint8: divide by the largest possible value",
    ),
    "NaN": (
        torch.full((1, 16, 16, 3), torch.nan),
        "pixels: expected finite numbers, got NaN in item 0 of 1: check what made the image",
    ),
}


@pytest.mark.parametrize("method", ["exact", "untiled", "blend"])
@pytest.mark.parametrize("name", BAD_LATENTS)
def test_bad_latents_are_refused_in_one_line(small_vae: VAE, name: str, method: str) -> None:
    z, text = BAD_LATENTS[name]
    with pytest.raises(InputError) as caught:
        small_vae.decode(z, method)
    assert str(caught.value) == text


@pytest.mark.parametrize("method", ["exact", "untiled", "blend"])
@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images_are_refused_in_one_line(small_vae: VAE, name: str, method: str) -> None:
    x, text = BAD_IMAGES[name]
    with pytest.raises(InputError) as caught:
        small_vae.encode(x, method)
    assert str(caught.value) == text


def test_unknown_methods_and_amounts_are_refused_in_one_line(small_vae: VAE) -> None:
    for run in (lambda **k: small_vae.decode(latents(), **k), lambda **k: small_vae.encode(images(), **k)):
        with pytest.raises(InputError) as caught:
            run(method="fast")
        assert str(caught.value) == ("method: expected one of exact, untiled, blend, got 'fast': choose one of these")
        with pytest.raises(ValueError, match="expected an amount such as 2GiB") as refused:
            run(memory="plenty")
        assert "\n" not in str(refused.value)


def test_half_a_model_says_which_half_is_missing(small_vae: VAE) -> None:
    model = copy.deepcopy(small_vae.first_stage_model)
    del model.encoder
    loaded = LoadedModel(model, small_vae.loaded.config, "kl", ("ldm",), "", {}, torch.float32)
    vae = VAE(loaded, small_vae.host, device=CPU, dtype=torch.float32, output_device=CPU)
    assert vae.decode(latents()).shape == (1, 24, 40, 3)
    with pytest.raises(InputError, match="expected a VAE with its encoder, got the decoder alone: load both files"):
        vae.encode(images())


def test_weights_loaded_under_inference_mode_can_be_trained(small_file: Path) -> None:
    with torch.inference_mode():
        vae = load_vae(small_file, device="cpu", dtype="float32")
        vae.decode(torch.zeros(1, 4, 2, 2))
    assert not any(parameter.is_inference() for parameter in vae.first_stage_model.parameters())


def test_weights_that_were_made_under_inference_mode_are_taken_as_they_are(state: dict[str, Tensor]) -> None:
    with torch.inference_mode():
        made = {key: tensor.clone() for key, tensor in state.items()}
    for mode in (False, True):
        with torch.inference_mode(mode):
            vae = load_vae(made, device="cpu", dtype="float32")
        assert vae.decode(torch.zeros(1, 4, 2, 2)).isfinite().all()
