"""The tiny autoencoder: shapes, the limits around the networks, slicing, and TAEF2's GroupNorm branch.

Tiles, gradient checkpointing and the rest of the requirements D01-D16: families/test_tiny_tiles.py and
families/test_tiny_contract.py.
"""

from collections.abc import Iterator

import pytest
import torch
from exact_vae.vae_model.families.tiny.config import TinyConfig
from exact_vae.vae_model.families.tiny.model import (
    AutoencoderTiny,
    AutoencoderTinyBlock,
    AutoencoderTinyOutput,
    DecoderOutput,
)
from torch import Tensor, nn
from torch.nn import functional

# float64, the same formula written otherwise.
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    """Fixed numbers, and one thread: these tensors are too small to share out."""
    torch.manual_seed(60)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small(**options: object) -> AutoencoderTiny:
    arguments = {
        "encoder_block_out_channels": (4, 8, 6),
        "decoder_block_out_channels": (6, 8, 4),
        "num_encoder_blocks": (1, 2, 1),
        "num_decoder_blocks": (2, 1, 1),
        "latent_channels": 5,
    }
    return AutoencoderTiny(**arguments | options).double()


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def plain_block(sd: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    if f"{name}.pool.0.weight" in sd:
        h = functional.conv2d(x, sd[f"{name}.pool.0.weight"])
        grouped = h.unflatten(1, (4, -1))
        centred = grouped - grouped.mean((2, 3, 4), keepdim=True)
        h = (centred / (centred.square().mean((2, 3, 4), keepdim=True) + 1e-5).sqrt()).flatten(1, 2)
        h = h * sd[f"{name}.pool.1.weight"][:, None, None] + sd[f"{name}.pool.1.bias"][:, None, None]
        x = x + functional.conv2d(h.clamp_min(0), sd[f"{name}.pool.3.weight"])
    h = x
    for number in (0, 2, 4):
        h = functional.conv2d(h, sd[f"{name}.conv.{number}.weight"], sd[f"{name}.conv.{number}.bias"], padding=1)
        h = h.clamp_min(0) if number < 4 else h
    skip = functional.conv2d(x, sd[f"{name}.skip.weight"]) if f"{name}.skip.weight" in sd else x
    return (h + skip).clamp_min(0)


def plain_convolution(sd: dict[str, Tensor], name: str, x: Tensor, stride: int = 1) -> Tensor:
    return functional.conv2d(x, sd[f"{name}.weight"], sd.get(f"{name}.bias"), padding=1, stride=stride)


def plain_encode(sd: dict[str, Tensor], x: Tensor) -> Tensor:
    """The encoder of `small`: conv, block, conv/2, block, block, conv/2, block, conv."""
    h = plain_convolution(sd, "encoder.layers.0", x / 2 + 0.5)
    h = plain_block(sd, "encoder.layers.1", h)
    h = plain_convolution(sd, "encoder.layers.2", h, stride=2)
    h = plain_block(sd, "encoder.layers.4", plain_block(sd, "encoder.layers.3", h))
    h = plain_convolution(sd, "encoder.layers.5", h, stride=2)
    return plain_convolution(sd, "encoder.layers.7", plain_block(sd, "encoder.layers.6", h))


def plain_decode(sd: dict[str, Tensor], z: Tensor) -> Tensor:
    """The decoder of `small`: conv, ReLU, 2 blocks, x2, conv, block, x2, conv, block, conv."""

    def double(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    h = plain_convolution(sd, "decoder.layers.0", 3 * torch.tanh(z / 3)).clamp_min(0)
    h = plain_block(sd, "decoder.layers.3", plain_block(sd, "decoder.layers.2", h))
    h = plain_block(sd, "decoder.layers.6", plain_convolution(sd, "decoder.layers.5", double(h)))
    h = plain_block(sd, "decoder.layers.9", plain_convolution(sd, "decoder.layers.8", double(h)))
    return 2 * plain_convolution(sd, "decoder.layers.10", h) - 1


def test_defaults_are_diffusers() -> None:
    """D01."""
    model = AutoencoderTiny()
    assert (model.latent_magnitude, model.latent_shift, model.scaling_factor, model.shift_factor) == (3, 0.5, 1, 0)
    assert model.force_upcast is False
    assert len(model.encoder.layers) == 4 + 10 + 1
    assert len(model.decoder.layers) == 2 + 10 + 3 + 4
    assert {m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)} == {64, 4, 3}
    assert sum(p.numel() for p in model.encoder.parameters()) == 1_222_532  # as the published TAESD
    assert AutoencoderTiny(force_upcast=True).force_upcast is True


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_lengths_must_agree(half: str) -> None:
    """D01."""
    message = f"`{half}_block_out_channels` should have the same length as `num_{half}_blocks`."
    with pytest.raises(ValueError, match=message):
        AutoencoderTiny(**{f"{half}_block_out_channels": (64, 64)})


@pytest.mark.parametrize("gn", [False, True])
@pytest.mark.parametrize("size", [(8, 12), (9, 7), (1, 1)])
def test_encoder_maps_to_0_1_and_rounds_sizes_up(size: tuple[int, int], gn: bool) -> None:
    """D02."""
    model, x = small(midblock_gn=gn), randn(2, 3, *size)
    z = model.encode(x).latents
    assert z.shape == (2, 5, -(-size[0] // 4), -(-size[1] // 4))
    torch.testing.assert_close(z, plain_encode(model.state_dict(), x), **CLOSE)
    with torch.no_grad():
        assert model.encode(x).latents.equal(z)


def test_biases_are_where_the_checkpoints_have_them() -> None:
    """D02."""
    model = small()
    biased = {k for k, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.bias is not None}
    assert {k for k in biased if ".conv." not in k} == {
        f"{half}.layers.{number}" for half, number in (("encoder", 0), ("encoder", 7), ("decoder", 0), ("decoder", 10))
    }


@pytest.mark.parametrize("gn", [False, True])
def test_decoder_limits_latents_softly_and_maps_back(gn: bool) -> None:
    """D03."""
    model, z = small(midblock_gn=gn), 5 * randn(2, 5, 3, 2)
    image = model.decode(z).sample
    assert image.shape == (2, 3, 12, 8)
    torch.testing.assert_close(image, plain_decode(model.state_dict(), z), **CLOSE)
    assert model.decode(torch.full_like(z, 1e9)).sample.equal(model.decode(torch.full_like(z, 1e6)).sample)


def test_gradients_equal_the_plain_computation() -> None:
    """D03."""
    model, z = small(midblock_gn=True), randn(1, 5, 2, 2).requires_grad_()
    state = dict(model.named_parameters())
    wanted = [z, *model.decoder.parameters()]
    ours, theirs = (
        torch.autograd.grad(image.square().sum(), wanted) for image in (model.decode(z).sample, plain_decode(state, z))
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)  # Long sums: two digits less than values.


@pytest.mark.parametrize("gn", [False, True])
@pytest.mark.parametrize("out_channels", [6, 4])
def test_the_block_adds_its_input_by_way_of_a_convolution_where_channels_differ(out_channels: int, gn: bool) -> None:
    """D04."""
    block, x = AutoencoderTinyBlock(6, out_channels, midblock_gn=gn).double(), randn(2, 6, 3, 5)
    sd = {f"b.{key}": tensor for key, tensor in block.state_dict().items()}
    assert ("b.skip.weight" in sd) is (out_channels != 6)
    assert "b.skip.bias" not in sd
    torch.testing.assert_close(block(x), plain_block(sd, "b", x), **CLOSE)


def test_group_norm_branch_stands_in_the_blocks_at_latent_resolution() -> None:
    """D04."""
    pools = {key.split(".pool")[0] for key in small(midblock_gn=True).state_dict() if ".pool." in key}
    assert pools == {"encoder.layers.6", "decoder.layers.2", "decoder.layers.3"}
    assert not any(".pool." in key for key in small().state_dict())


@pytest.mark.parametrize("act_fn", ["relu", "silu", "gelu", "mish"])
def test_activation_can_be_chosen(act_fn: str) -> None:
    """D04."""
    block, x = AutoencoderTinyBlock(2, 2, act_fn).double(), randn(1, 2, 3, 3)
    act = getattr(functional, act_fn)
    h = block.conv[4](act(block.conv[2](act(block.conv[0](x)))))
    torch.testing.assert_close(block(x), functional.relu(h + x), **CLOSE)


def test_scaling_of_latents() -> None:
    """D05."""
    model = AutoencoderTiny(latent_magnitude=2, latent_shift=0.25)
    x = torch.tensor([-100.0, -1.0, 0.0, 1.0, 3.0, 100.0])
    assert model.scale_latents(x).tolist() == [0, 0, 0.25, 0.5, 1, 1]
    assert model.unscale_latents(torch.tensor([0.0, 0.25, 1.0, 2.0])).tolist() == [-1, 0, 3, 7]
    x = torch.linspace(-3, 3, 50)
    model = AutoencoderTiny()
    # Shifting by 0.5 costs the last bits of numbers near 0: a few units of 2^-24 times 6.
    torch.testing.assert_close(model.unscale_latents(model.scale_latents(x)), x, rtol=0, atol=2e-6)


def test_slicing_flags() -> None:
    """D06."""
    model, x, z = small(), randn(3, 3, 8, 4), randn(3, 5, 2, 1)
    batches: list[int] = []
    for half in (model.encoder, model.decoder):
        half.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    whole = model.encode(x).latents, model.decode(z).sample
    model.enable_slicing()
    torch.testing.assert_close((model.encode(x).latents, model.decode(z).sample), whole, **CLOSE)
    model.disable_slicing()
    model.encode(x)
    assert batches == [3, 3, 1, 1, 1, 1, 1, 1, 3]


def test_encode_returns_latents_or_a_tuple() -> None:
    """D11."""
    model, x = small(), randn(2, 3, 8, 8)
    out = model.encode(x)
    assert isinstance(out, AutoencoderTinyOutput)
    (latents,) = model.encode(x, return_dict=False)
    assert latents.equal(out.latents)


@pytest.mark.parametrize("slicing", [False, True])
def test_decode_returns_each_image_once(slicing: bool) -> None:
    """D12."""
    model, z = small(), randn(3, 5, 2, 2)
    model.use_slicing = slicing
    out = model.decode(z, generator=torch.Generator())
    assert isinstance(out, DecoderOutput)
    assert out.sample.shape == (3, 3, 8, 8)
    singles = torch.cat([model.decode(z[i : i + 1]).sample for i in range(3)])
    torch.testing.assert_close(out.sample, singles, **CLOSE)
    (sample,) = model.decode(z, return_dict=False)
    assert type(sample) is Tensor


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_half_a_model_says_what_is_missing(half: str) -> None:
    missing = {"encoder": "decoder", "decoder": "encoder"}[half]
    model = small(**{f"{missing}_block_out_channels": None})
    assert {key.split(".")[0] for key in model.state_dict()} == {half}
    with pytest.raises(RuntimeError, match=f"expected a model with {missing}, got half a model"):
        model.decode(randn(1, 5, 2, 2)) if missing == "decoder" else model.encode(randn(1, 3, 8, 8))


def test_halves_of_different_factors_do_not_belong_together() -> None:
    with pytest.raises(ValueError, match=r"expected as many stages in encoder and decoder, got \[2, 3\]"):
        TinyConfig(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8, 8))
