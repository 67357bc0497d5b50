"""The requirements D01-D16 on the tiny autoencoder, one test for each at least.

More of each: families/test_tiny.py and families/test_tiny_tiles.py; equality with diffusers over many shapes:
families/test_diffusers_equality.py.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import load_vae
from exact_vae.tests.exactness import assert_exact
from exact_vae.vae_model.checkpoint.save import save
from exact_vae.vae_model.families.tiny.model import (
    AutoencoderTiny,
    AutoencoderTinyBlock,
    AutoencoderTinyOutput,
    DecoderOutput,
)
from torch import Tensor, nn

# float64, the same numbers summed in another order.
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(autouse=True)
def seed(one_thread: None) -> None:
    torch.manual_seed(120)


def small(**options: Any) -> AutoencoderTiny:
    widths = {"encoder_block_out_channels": (4, 6, 8), "decoder_block_out_channels": (8, 6, 4)}
    blocks = {"num_encoder_blocks": (1, 2, 1), "num_decoder_blocks": (1, 2, 1)}
    return AutoencoderTiny(**widths | blocks | options).double()


def images(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64) * 2 - 1


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def test_defaults_messages_and_unequal_widths() -> None:
    """D01."""
    diffusers = pytest.importorskip("diffusers")
    ours, theirs = AutoencoderTiny(), diffusers.AutoencoderTiny()
    shapes = [{key: tensor.shape for key, tensor in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    for half in ("encoder", "decoder"):
        messages: list[str] = []
        for make in (AutoencoderTiny, diffusers.AutoencoderTiny):
            with pytest.raises(ValueError, match=f"`{half}_block_out_channels` should have") as caught:
                make(**{f"{half}_block_out_channels": (64,)})
            messages.append(str(caught.value))
        assert messages[0] == messages[1]
    assert small()(images(1, 3, 8, 12)).sample.shape == (1, 3, 8, 12)


@pytest.mark.parametrize("gn", [False, True])
def test_gradient_checkpointing_changes_nothing(gn: bool) -> None:
    """D02."""
    model, x = small(midblock_gn=gn), images(2, 3, 8, 8).requires_grad_()
    results: list[list[Tensor]] = []
    saved: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        saved[-1] += tensor.nbytes
        return tensor

    for switch in (model.disable_gradient_checkpointing, model.enable_gradient_checkpointing):
        switch()
        saved.append(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            z = model.encode(x).latents
            image = model.decode(z).sample
        gradients = torch.autograd.grad(image.square().mean(), [x, *model.parameters()])
        results.append([z, image, *gradients])
    for plain, again in zip(*results, strict=True):
        assert again.equal(plain)
    assert results[0][2].any()  # the gradient in the image, through encoder and decoder
    assert saved[1] < saved[0] / 2
    with torch.no_grad():
        assert model.encode(x).latents.equal(results[0][0])
    assert not model.encode(x).latents.equal(model.encoder.layers(x))  # -1..1 becomes 0..1 with it, too


def test_decoder_limits_latents_and_maps_back() -> None:
    """D03."""
    model, z = small(), 5 * randn(1, 4, 3, 2)
    expected = 2 * model.decoder.layers(3 * torch.tanh(z / 3)) - 1
    torch.testing.assert_close(model.decode(z).sample, expected, **CLOSE)
    convs = [layer for layer in model.decoder.layers if isinstance(layer, nn.Conv2d)]
    assert [conv.bias is not None for conv in convs] == [True, False, False, True]


def test_the_block_is_three_convolutions_and_a_sum() -> None:
    """D04."""
    block, x = AutoencoderTinyBlock(3, 5).double(), randn(1, 3, 4, 4)
    assert (block.skip.weight.shape, block.skip.bias) == ((5, 3, 1, 1), None)
    torch.testing.assert_close(block(x), torch.relu(block.conv(x) + block.skip(x)), **CLOSE)
    assert isinstance(AutoencoderTinyBlock(3, 3).skip, nn.Identity)
    assert hasattr(AutoencoderTinyBlock(3, 3, midblock_gn=True), "pool")


def test_scaling_cuts_one_way_only() -> None:
    """D05."""
    model, x = AutoencoderTiny(), torch.tensor([-9.0, -3.0, 0.0, 1.5, 9.0])
    assert model.scale_latents(x).tolist() == [0, 0, 0.5, 0.75, 1]
    assert model.unscale_latents(torch.tensor([-1.0, 0.0, 0.75, 2.0])).tolist() == [-9, -3, 1.5, 9]


def test_slicing_and_tiling_are_switched_by_flags() -> None:
    """D06."""
    model = small()
    assert (model.use_slicing, model.use_tiling) == (False, False)
    model.enable_slicing()
    model.enable_tiling()
    assert (model.use_slicing, model.use_tiling) == (True, True)
    model.enable_tiling(False)
    model.disable_slicing()
    assert (model.use_slicing, model.use_tiling) == (False, False)
    model.enable_tiling(True)
    model.disable_tiling()
    assert not model.use_tiling


@pytest.mark.parametrize(("stages", "out_channels", "scaling"), [(4, 3, 2), (4, 1, 2), (4, 4, 2), (3, 3, 2), (3, 3, 3)])
def test_the_factor_comes_from_the_stages(stages: int, out_channels: int, scaling: int) -> None:
    """D07."""
    model = AutoencoderTiny(
        out_channels=out_channels,
        upsampling_scaling_factor=scaling,
        **{f"{half}_block_out_channels": (4,) * stages for half in ("encoder", "decoder")},
        **{f"num_{half}_blocks": (1,) * stages for half in ("encoder", "decoder")},
    )
    factor = scaling ** (stages - 1)
    assert model.spatial_scale_factor == factor
    assert model.decode(torch.zeros(1, 4, 2, 3)).sample.shape == (1, out_channels, 2 * factor, 3 * factor)
    model.enable_tiling()
    model.tile_latent_min_size = 2
    assert model.decode(torch.zeros(1, 4, 2, 3)).sample.shape == (1, out_channels, 2 * factor, 3 * factor)


def test_tile_sizes_have_diffusers_defaults_and_can_be_set() -> None:
    """D08."""
    model = AutoencoderTiny()
    assert (model.tile_overlap_factor, model.tile_sample_min_size, model.tile_latent_min_size) == (0.125, 512, 64)
    model = small()
    assert model.tile_latent_min_size == 128  # 4 pixels along a cell
    model.tile_sample_min_size, model.tile_latent_min_size = 32, 4
    model.enable_tiling()
    sizes: list[tuple[int, ...]] = []
    for half in (model.encoder, model.decoder):
        half.register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].shape[2:])))
    model.encode(images(1, 3, 60, 32))
    assert sizes[0] == (32, 32)
    sizes.clear()
    model.decode(randn(1, 4, 8, 4))
    assert sizes == [(4, 4), (4, 4)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 16])
def test_tiled_encode_takes_any_channels_size_and_dtype(channels: int, dtype: torch.dtype) -> None:
    """D09."""
    model, x = small(latent_channels=channels).to(dtype), images(2, 3, 75, 66).to(dtype)
    whole = model.encode(x).latents
    model.enable_tiling()
    model.tile_sample_min_size, model.tile_overlap_factor = 48, 0.5
    z = model.encode(x).latents
    assert (z.shape, z.dtype) == ((2, channels, 19, 17), dtype)
    assert not z.equal(whole)  # tiles do show
    # The first cell sees 39 pixels, which lie in the first tile, and no other tile is blended into it.
    torch.testing.assert_close(z[:, :, :1, :1], whole[:, :, :1, :1], rtol=0, atol=0.02 if dtype.itemsize == 2 else 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 4])
def test_tiled_decode_takes_any_channels_size_and_dtype(channels: int, dtype: torch.dtype) -> None:
    """D10."""
    model, z = small(out_channels=channels).to(dtype), randn(2, 4, 19, 14).to(dtype)
    whole = model.decode(z).sample
    model.enable_tiling()
    model.tile_latent_min_size, model.tile_overlap_factor = 12, 0.5
    image = model.decode(z).sample
    assert (image.shape, image.dtype) == ((2, channels, 76, 56), dtype)
    assert not image.equal(whole)
    # The first pixel sees 9 cells, which lie in the first tile, and no other tile is blended into it.
    close = 0.02 if dtype.itemsize == 2 else 1e-6
    torch.testing.assert_close(image[:, :, :1, :1], whole[:, :, :1, :1], rtol=0, atol=close)


@pytest.mark.parametrize("tiling", [False, True])
def test_encode_returns_latents_or_a_tuple_and_slices(tiling: bool) -> None:
    """D11."""
    model, x = small(), images(3, 3, 12, 8)
    model.enable_tiling(tiling)
    whole = model.encode(x)
    assert isinstance(whole, AutoencoderTinyOutput)
    model.enable_slicing()
    batches: list[int] = []
    model.encoder.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    (latents,) = model.encode(x, return_dict=False)
    torch.testing.assert_close(latents, whole.latents, **CLOSE)
    assert batches == [1, 1, 1]


@pytest.mark.parametrize("tiling", [False, True])
def test_decode_slices_give_each_image_once(tiling: bool) -> None:
    """D12."""
    model, z = small(), randn(3, 4, 3, 2)
    model.enable_tiling(tiling)
    whole = model.decode(z, generator=torch.Generator())
    assert isinstance(whole, DecoderOutput)
    model.enable_slicing()
    (sample,) = model.decode(z, return_dict=False)
    assert sample.shape == (3, 3, 12, 8)
    torch.testing.assert_close(sample, whole.sample, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_forward_stores_latents_in_8_bits(dtype: torch.dtype) -> None:
    """D13."""
    model, x = small().to(dtype), images(2, 3, 8, 8).to(dtype)
    with torch.no_grad():
        out = model(x)
        z = model.encode(x).latents.float()
        levels = ((z / 6 + 0.5).clamp(0, 1) * 255).round()
        expected = model.decode((levels / 255 * 6 - 3).to(dtype)).sample
        assert out.sample.dtype == dtype
        torch.testing.assert_close(out.sample, expected, rtol=0, atol=0.02 if dtype.itemsize == 2 else 1e-6)
        (sample,) = model(x, return_dict=False)
        assert type(sample) is Tensor
        assert sample.equal(out.sample)
        assert model(x, quantize=False).sample.equal(model.decode(model.encode(x).latents).sample)


def test_only_without_bytes_the_encoder_trains() -> None:
    """D13."""
    model, x = small(), images(1, 3, 8, 8)
    for quantize in (True, False):
        model.zero_grad()
        model(x, quantize=quantize).sample.square().mean().backward()
        assert all((p.grad is None) is quantize for p in model.encoder.parameters())
        assert all(p.grad is not None for p in model.decoder.parameters())


def test_forward_equals_diffusers() -> None:
    """D13."""
    diffusers = pytest.importorskip("diffusers")
    options = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    ours, theirs = AutoencoderTiny(**options), diffusers.AutoencoderTiny(**options)
    theirs.load_state_dict(ours.state_dict())
    x = images(2, 3, 40, 24).float()
    with torch.no_grad():
        torch.testing.assert_close(ours(x).sample, theirs(x).sample, rtol=0, atol=1e-6)  # the same operations


def test_gradient_checkpointing_can_be_switched() -> None:
    """D14."""
    model = small()
    assert model._supports_gradient_checkpointing
    for switch, value in ((model.enable_gradient_checkpointing, True), (model.disable_gradient_checkpointing, False)):
        switch()
        assert model.encoder.gradient_checkpointing is model.decoder.gradient_checkpointing is value
    model._set_gradient_checkpointing(model.decoder, True)
    assert (model.encoder.gradient_checkpointing, model.decoder.gradient_checkpointing) == (False, True)
    half = small(decoder_block_out_channels=None)
    half.enable_gradient_checkpointing()
    assert half.encoder.gradient_checkpointing


def test_the_configuration_is_kept_as_given() -> None:
    """D15."""
    model = small(force_upcast=True, latent_channels=16, act_fn="silu")
    assert model.config["force_upcast"] is model.force_upcast is True
    assert (model.config["latent_channels"], model.config["block_out_channels"]) == (16, (8, 6, 4))
    arguments = {key: value for key, value in model.config.items() if key != "block_out_channels"}
    again = AutoencoderTiny(**arguments)
    assert again.config == model.config
    assert [tensor.shape for tensor in again.state_dict().values()] == [t.shape for t in model.state_dict().values()]


def test_a_halo_of_19_cells_is_exact_and_diffusers_overlap_is_not() -> None:
    """D16."""
    widths = {"encoder_block_out_channels": (4,) * 4, "decoder_block_out_channels": (4,) * 4}
    model = AutoencoderTiny(**widths).double()
    z, x = randn(1, 4, 60, 3), images(1, 3, 480, 24)
    with torch.no_grad():
        image, latents = model.decode(z).sample, model.encode(x).latents
        for halo in (19, 8):
            part = model.decode(z[:, :, 20 - halo : 40 + halo]).sample[:, :, 8 * halo : -8 * halo]
            cells = model.encode(x[:, :, 8 * (20 - halo) : 8 * (40 + halo)]).latents[:, :, halo:-halo]
            errors = [(part - image[:, :, 160:320]).abs().max(), (cells - latents[:, :, 20:40]).abs().max()]
            assert [bool(error > 1e-12) for error in errors] == [halo == 8] * 2


@pytest.mark.parametrize("gn", [False, True])
def test_the_exact_engine_needs_no_tiles(gn: bool, tmp_path: Path) -> None:
    """D16."""
    widths = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    model = AutoencoderTiny(**widths, midblock_gn=gn).eval()
    save(model, tmp_path / "tiny.safetensors")
    vae = load_vae(tmp_path / "tiny.safetensors", device="cpu", dtype="float32")
    z, x = torch.randn(1, 4, 20, 6), torch.rand(1, 160, 48, 3)
    with torch.inference_mode():
        expected = ((model.decode(z).sample + 1) / 2).clamp(0, 1).movedim(1, -1)
        latents = model.encode(x.movedim(-1, 1) * 2 - 1).latents
    torch.testing.assert_close(
        vae.decode(z, tile_size=16), expected, rtol=0, atol=2e-5
    )  # the project's bound, on a range of 1
    assert vae.last_report.exact
    assert_exact(vae.encode(x, tile_size=16), latents)
    assert vae.last_report.exact
