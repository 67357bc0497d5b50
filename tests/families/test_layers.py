"""The building blocks but attention against plain re-computations in float64, in values and in gradients.

Rows B11-B18 (attention) are in tests/families/test_layers_attention.py.
"""

from collections.abc import Iterator

import pytest
import torch
from exact_vae import InputError
from exact_vae.vae_model.families.ldm.layers import (
    Downsample,
    Normalize,
    ResnetBlock,
    Upsample,
    activate_fresh,
    nonlinearity,
)
from torch import Tensor, nn
from torch.nn import functional

# float64 against the same formula written otherwise: sums of a few hundred values around 1 in another order.
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    """Fixed numbers, and one thread: these tensors are too small to share out."""
    torch.manual_seed(20)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def double(module: nn.Module) -> nn.Module:
    """The module in float64 with random affine parameters, for a fresh norm's 1 and 0 hide mistakes."""
    with torch.no_grad():
        for parameter in module.double().parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def plain_norm(x: Tensor, norm: nn.Module, groups: int) -> Tensor:
    grouped = x.unflatten(1, (groups, -1))  # (B, G, C / G, H, W)
    mean = grouped.mean((2, 3, 4), keepdim=True)
    var = (grouped - mean).square().mean((2, 3, 4), keepdim=True)
    normed = ((grouped - mean) / (var + 1e-6).sqrt()).flatten(1, 2)
    return normed * norm.weight[:, None, None] + norm.bias[:, None, None]


def plain_silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def plain_conv(x: Tensor, conv: nn.Module) -> Tensor:
    return functional.conv2d(x, conv.weight, conv.bias, padding=conv.weight.shape[-1] // 2)


def plain_block(block: ResnetBlock, x: Tensor, groups: int, temb: Tensor | None = None) -> Tensor:
    h = plain_conv(plain_silu(plain_norm(x, block.norm1, groups)), block.conv1)
    if temb is not None:
        h = h + (plain_silu(temb) @ block.temb_proj.weight.T + block.temb_proj.bias)[:, :, None, None]
    h = plain_conv(plain_silu(plain_norm(h, block.norm2, groups)), block.conv2)
    for name in ("nin_shortcut", "conv_shortcut"):
        x = plain_conv(x, getattr(block, name)) if hasattr(block, name) else x
    return x + h


def assert_same_with_gradients(module: nn.Module, actual: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    """Equal values, and equal gradients of a random projection in the inputs and in every parameter."""
    torch.testing.assert_close(actual, expected, **CLOSE)
    weights = torch.randn_like(expected)
    wanted = [*inputs, *module.parameters()]
    gradients = [torch.autograd.grad((y * weights).sum(), wanted) for y in (actual, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)  # Long sums: two digits less than values.


def test_nonlinearity_is_silu() -> None:
    """B02."""
    x = torch.tensor([0.5, 1.0, 1.5])
    torch.testing.assert_close(nonlinearity(x), torch.tensor([0.3112, 0.7311, 1.2264]), rtol=0, atol=5e-5)  # 4 digits
    assert x.tolist() == [0.5, 1.0, 1.5]
    assert torch.autograd.gradcheck(nonlinearity, randn(5).requires_grad_())


def test_fresh_activation_is_in_place_only_without_autograd() -> None:
    """B02."""
    x = randn(4)
    assert activate_fresh(x.clone()).equal(nonlinearity(x))
    assert activate_fresh(x) is not x
    with torch.no_grad():
        assert activate_fresh(x) is x
    assert torch.autograd.gradcheck(activate_fresh, randn(5).requires_grad_())


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (24, 8), (6, 1)])
def test_normalize_is_group_norm_with_eps_1e_6(channels: int, groups: int) -> None:
    """B03."""
    norm = double(Normalize(channels, groups))
    x = 1e-3 * randn(2, channels, 3, 5) + 7  # A variance of 1e-6: another eps would be seen.
    # The mean of 7 costs four digits of a deviation of 1e-3.
    torch.testing.assert_close(norm(x), plain_norm(x, norm, groups), rtol=1e-9, atol=1e-9)


def test_normalize_has_32_groups_unless_told() -> None:
    """B03."""
    assert Normalize(96).num_groups == 32
    with pytest.raises(ValueError, match="expected channels divisible by 32 groups, got 48: change num_groups"):
        Normalize(48)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 2)])
def test_upsample_doubles_each_pixel_then_convolves(size: tuple[int, int]) -> None:
    """B04."""
    layer, x = double(Upsample(4)), randn(2, 4, *size)
    doubled = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert Upsample(4, with_conv=False)(x).equal(doubled)
    assert not Upsample(4, with_conv=False).state_dict()
    torch.testing.assert_close(layer(x), plain_conv(doubled, layer.conv), **CLOSE)
    assert layer.conv.weight.shape == (4, 4, 3, 3)


@pytest.mark.parametrize("channels", [1, 3, 16])
def test_upsample_takes_bfloat16(channels: int) -> None:
    """B05."""
    x = torch.randn(2, channels, 5, 3).bfloat16()
    out = Upsample(channels, with_conv=False)(x)
    assert out.dtype == torch.bfloat16
    assert out.float().equal(Upsample(channels, with_conv=False)(x.float()))
    assert Upsample(channels).bfloat16()(x).dtype == torch.bfloat16


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (2, 3)])
def test_downsample_pads_right_and_bottom(size: tuple[int, int]) -> None:
    """B06."""
    # Each tap of the 3x3 kernel alone: it reads the image, one pixel beyond on the right and bottom, nothing before.
    layer, x = Downsample(1).double(), randn(1, 1, *size)
    h, w = size[0] // 2, size[1] // 2
    padded = torch.zeros(1, 1, size[0] + 1, size[1] + 1, dtype=torch.float64)
    padded[:, :, : size[0], : size[1]] = x
    for row in range(3):
        for column in range(3):
            with torch.no_grad():
                layer.conv.weight.zero_()[0, 0, row, column] = 1
                layer.conv.bias.zero_()
            assert layer(x).equal(padded[:, :, row::2, column::2][:, :, :h, :w])


@pytest.mark.parametrize(("before", "after"), [(64, 32), (65, 32), (2, 1)])
@pytest.mark.parametrize("with_conv", [True, False])
def test_downsample_halves_rounding_down(before: int, after: int, with_conv: bool) -> None:
    """B06."""
    assert Downsample(2, with_conv)(torch.zeros(1, 2, before, before + 2)).shape == (1, 2, after, after + 1)


def test_downsample_without_convolution_averages() -> None:
    """B07."""
    x = randn(2, 3, 5, 6)
    expected = (x[:, :, 0:4:2, ::2] + x[:, :, 1:4:2, ::2] + x[:, :, 0:4:2, 1::2] + x[:, :, 1:4:2, 1::2]) / 4
    layer = Downsample(3, with_conv=False)
    torch.testing.assert_close(layer(x), expected, **CLOSE)
    assert not layer.state_dict()


NORMS_AND_CONVOLUTIONS = {"norm1", "conv1", "norm2", "conv2"}


def test_resnet_block_has_the_checkpoints_names() -> None:
    """B08."""

    def names(**options: object) -> dict[str, tuple[int, ...]]:
        block = ResnetBlock(in_channels=4, num_groups=2, **options)
        return {key.removesuffix(".weight"): tuple(t.shape) for key, t in block.state_dict().items() if t.ndim > 1}

    assert set(names()) == {"conv1", "conv2", "temb_proj"}
    assert names()["temb_proj"] == (4, 512)
    assert set(names(temb_channels=0, out_channels=4, conv_shortcut=True)) == {"conv1", "conv2"}
    assert names(temb_channels=0, out_channels=6)["nin_shortcut"] == (6, 4, 1, 1)
    assert names(temb_channels=0, out_channels=6, conv_shortcut=True)["conv_shortcut"] == (6, 4, 3, 3)
    block = ResnetBlock(in_channels=4, temb_channels=0, num_groups=2)
    assert {key.split(".")[0] for key in block.state_dict()} == NORMS_AND_CONVOLUTIONS


def test_dropout_stands_before_the_second_convolution() -> None:
    """B08."""
    block = double(ResnetBlock(in_channels=4, temb_channels=0, num_groups=2, dropout=1.0))
    x = randn(2, 4, 3, 3)
    torch.testing.assert_close(block.train()(x), x + block.conv2.bias[:, None, None], **CLOSE)
    torch.testing.assert_close(block.eval()(x), plain_block(block, x, 2), **CLOSE)


@pytest.mark.parametrize("conv_shortcut", [True, False])
@pytest.mark.parametrize("out_channels", [None, 12])
@pytest.mark.parametrize("with_temb", [True, False])
def test_resnet_block_forward(out_channels: int | None, conv_shortcut: bool, with_temb: bool) -> None:
    """B09."""
    block = double(
        ResnetBlock(
            in_channels=8, out_channels=out_channels, conv_shortcut=conv_shortcut, temb_channels=6, num_groups=4
        )
    )
    x, temb = randn(2, 8, 5, 3), randn(2, 6) if with_temb else None
    expected, before = plain_block(block, x, 4, temb), x.clone()
    torch.testing.assert_close(block(x, temb), expected, **CLOSE)
    with torch.no_grad():  # Here activations are in place: the input must survive.
        torch.testing.assert_close(block(x, temb), expected, **CLOSE)
    assert x.equal(before)


def test_timestep_without_projection_is_refused() -> None:
    """B09."""
    with pytest.raises(ValueError, match="expected temb=None"):
        ResnetBlock(in_channels=4, temb_channels=0, num_groups=2)(torch.zeros(1, 4, 2, 2), torch.zeros(1, 512))


def test_timestep_embedding_is_never_changed() -> None:
    """B10."""
    blocks = [double(ResnetBlock(in_channels=4, temb_channels=6, num_groups=2)) for _ in range(2)]
    x, temb = randn(2, 4, 3, 3), randn(2, 6)
    before = temb.clone()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            h = blocks[1](blocks[0](x, temb), temb)
        assert temb.equal(before)
        torch.testing.assert_close(h, plain_block(blocks[1], plain_block(blocks[0], x, 2, temb), 2, temb), **CLOSE)


@pytest.mark.parametrize("out_channels", [8, 12])
def test_training_gradients_of_two_blocks_sharing_a_timestep(out_channels: int) -> None:
    """B10."""
    blocks = nn.ModuleList(
        double(ResnetBlock(in_channels=width, out_channels=out_channels, temb_channels=6, num_groups=4))
        for width in (8, out_channels)
    )
    x, temb = randn(2, 8, 4, 3).requires_grad_(), randn(2, 6).requires_grad_()
    actual = blocks[1](blocks[0](x, temb), temb)
    expected = plain_block(blocks[1], plain_block(blocks[0], x, 4, temb), 4, temb)
    assert_same_with_gradients(blocks, actual, expected, [x, temb])


def test_resnet_block_passes_gradcheck() -> None:
    """B10."""
    block = double(ResnetBlock(in_channels=2, out_channels=4, temb_channels=2, num_groups=2))
    assert torch.autograd.gradcheck(block, (randn(1, 2, 3, 2).requires_grad_(), randn(1, 2).requires_grad_()))


@pytest.mark.parametrize("shape", [(3, 16), (1, 8), (16,)])
def test_embeddings_of_other_images_or_widths_are_refused(shape: tuple[int, ...]) -> None:
    block = ResnetBlock(in_channels=32, temb_channels=16)
    x = torch.randn(2, 32, 4, 4)
    assert block(x, torch.zeros(1, 16)).shape == block(x, torch.zeros(2, 16)).shape == x.shape
    with pytest.raises(InputError, match=r"ResnetBlock: expected temb \(2, 16\), got"):
        block(x, torch.zeros(shape))
