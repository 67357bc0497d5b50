"""The requirements B01-B10 and B20-B27 on layers, UNet and coders, one test for each at least.

B11-B19, attention's, are in families/test_attention_layers.py; B28-B32 are the temporal decoder's. More of each:
families/test_layers.py, families/test_unet.py, families/test_coder.py.
"""

import logging
from typing import Any

import pytest
import torch
from exact_vae.vae_model.families.ldm import layers
from exact_vae.vae_model.families.ldm.coder import Decoder, Encoder
from exact_vae.vae_model.families.ldm.layers import (
    Downsample,
    LinAttnBlock,
    Normalize,
    ResnetBlock,
    Upsample,
    nearest_x2,
    nonlinearity,
)
from exact_vae.vae_model.families.ldm.unet import Model, get_timestep_embedding
from torch import Tensor, nn
from torch.nn import functional

# float64, the same formula written otherwise: sums of some hundred values around 1 in another order.
CLOSE = {"rtol": 1e-12, "atol": 1e-12}
SMALL: dict[str, Any] = {
    "ch": 4,
    "out_ch": 3,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "in_channels": 3,
    "resolution": 16,
    "num_groups": 2,
}
CODER = SMALL | {"z_channels": 5}


@pytest.fixture(autouse=True)
def seed(one_thread: None) -> None:
    torch.manual_seed(100)


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def test_timestep_embedding_is_sines_then_cosines() -> None:
    """B01."""
    t = torch.tensor([1])
    expected = torch.tensor([[0.8415, 0.0001, 0.5403, 1.0]])
    torch.testing.assert_close(get_timestep_embedding(t, 4), expected, rtol=0, atol=5e-5)  # four digits
    odd = get_timestep_embedding(torch.tensor([0, 7]), 9)
    assert odd.dtype == torch.float32
    assert odd[:, :8].equal(get_timestep_embedding(torch.tensor([0, 7]), 8))
    assert odd[:, 8].tolist() == [0, 0]
    for dim in (2, 3):  # one frequency, 1
        wave = get_timestep_embedding(torch.tensor([2]), dim)[0, :2]
        torch.testing.assert_close(wave, torch.tensor([2.0, 2.0 + torch.pi / 2]).sin(), rtol=0, atol=1e-6)  # float32
    assert get_timestep_embedding(t, 1).tolist() == [[0]]
    with pytest.raises(ValueError, match="embedding_dim: expected at least 1, got 0"):
        get_timestep_embedding(t, 0)
    assert get_timestep_embedding(t, torch.tensor(8)).equal(get_timestep_embedding(t, 8))  # pyright: ignore
    for width in (8.0, "8", None, 8.5, [8]):
        with pytest.raises(ValueError, match=r"embedding_dim: expected a whole number of channels, got .*: give one"):
            get_timestep_embedding(t, width)  # pyright: ignore
    with pytest.raises(ValueError, match=r"expected one dimension, got shape \(1, 1\)"):
        get_timestep_embedding(t[None], 4)
    for other in ([0, 1, 2], None, 3):
        with pytest.raises(ValueError, match=r"timesteps: expected a tensor \(N,\), got \w+: make one"):
            get_timestep_embedding(other, 4)  # type: ignore[arg-type]


def test_nonlinearity_is_silu() -> None:
    """B02."""
    x = torch.tensor([0.5, 1.0, 1.5])
    torch.testing.assert_close(nonlinearity(x), torch.tensor([0.3112, 0.7311, 1.2264]), rtol=0, atol=5e-5)


def test_normalize_has_32_groups_unless_told() -> None:
    """B03."""
    norm = Normalize(64)
    assert (norm.num_groups, norm.eps, norm.affine) == (32, 1e-6, True)
    assert Normalize(6, num_groups=3).num_groups == 3
    with pytest.raises(ValueError, match="expected channels divisible by 32 groups, got 48"):
        Normalize(48)


def test_upsample_doubles_then_convolves() -> None:
    """B04."""
    x, layer = randn(1, 3, 5, 2), Upsample(3, with_conv=True).double()
    doubled = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert Upsample(3, with_conv=False)(x).equal(doubled)
    torch.testing.assert_close(
        layer(x), functional.conv2d(doubled, layer.conv.weight, layer.conv.bias, padding=1), **CLOSE
    )


@pytest.mark.parametrize("channels", [1, 3, 8, 20])
def test_bfloat16_goes_through_float32_only_where_the_kernel_is_missing(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B05."""
    x, seen = torch.randn(2, channels, 3, 5).bfloat16(), []
    expected = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    real = functional.interpolate

    def old(tensor: Tensor, **options: Any) -> Tensor:
        seen.append((tensor.dtype, tensor.shape[1]))
        if tensor.dtype == torch.bfloat16:
            raise RuntimeError("\"upsample_nearest2d_out_frame\" not implemented for 'BFloat16'")
        return real(tensor, **options)

    assert nearest_x2(x).equal(expected)
    monkeypatch.setattr(layers.functional, "interpolate", old)
    out = Upsample(channels, with_conv=False)(x)
    assert out.equal(expected)
    assert out.dtype == torch.bfloat16
    assert seen[0] == (torch.bfloat16, channels)
    assert {dtype for dtype, _ in seen[1:]} == {torch.float32}
    assert max(width for _, width in seen[1:]) <= max(1, channels // 8)
    assert sum(width for _, width in seen[1:]) == channels


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), RuntimeError("other"), KeyboardInterrupt()])
def test_other_errors_reach_the_caller(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """B05."""
    calls: list[int] = []

    def fail(*_: Any, **__: Any) -> Tensor:
        calls.append(1)
        raise error

    monkeypatch.setattr(layers.functional, "interpolate", fail)
    with pytest.raises(type(error)):
        nearest_x2(torch.zeros(1, 3, 2, 2).bfloat16())
    assert len(calls) == 1


@pytest.mark.parametrize(("before", "after"), [(64, 32), (65, 32), (2, 1)])
def test_downsample_pads_right_and_bottom_only(before: int, after: int) -> None:
    """B06."""
    x, layer = randn(1, 2, before, before + 1), Downsample(2).double()
    padded = torch.zeros(1, 2, before + 1, before + 2, dtype=torch.float64)
    padded[:, :, :before, : before + 1] = x
    expected = functional.conv2d(padded, layer.conv.weight, layer.conv.bias, stride=2)
    assert layer(x).shape[2] == after
    torch.testing.assert_close(layer(x), expected, **CLOSE)


def test_downsample_without_convolution_averages() -> None:
    """B07."""
    x = torch.arange(20.0).reshape(1, 1, 4, 5)
    assert Downsample(1, with_conv=False)(x).tolist() == [[[[3.0, 5.0], [13.0, 15.0]]]]


def test_resnet_block_names_and_order() -> None:
    """B08."""

    def names(**options: Any) -> set[str]:
        return {key.split(".")[0] for key in ResnetBlock(in_channels=4, num_groups=2, **options).state_dict()}

    always = {"norm1", "conv1", "norm2", "conv2"}
    assert names() == always | {"temb_proj"}
    assert names(temb_channels=0, conv_shortcut=True) == always
    assert names(temb_channels=0, out_channels=6) == always | {"nin_shortcut"}
    assert names(temb_channels=0, out_channels=6, conv_shortcut=True) == always | {"conv_shortcut"}
    ran: list[str] = []
    block = ResnetBlock(in_channels=4, num_groups=2, temb_channels=0, dropout=0.5)
    for name, child in block.named_children():
        child.register_forward_hook(lambda *_, name=name: ran.append(name))
    block(torch.zeros(1, 4, 2, 2))
    assert ran == ["norm1", "conv1", "norm2", "dropout", "conv2"]


def test_resnet_block_adds_the_timestep_and_refuses_one_it_has_no_place_for() -> None:
    """B09."""
    block, x = ResnetBlock(in_channels=4, num_groups=2, temb_channels=6).double(), randn(2, 4, 3, 3)
    added: list[Tensor] = []
    block.norm2.register_forward_pre_hook(lambda _, args: added.append(args[0].clone()))
    temb = randn(2, 6)
    block(x), block(x, temb)
    expected = block.temb_proj(functional.silu(temb))[:, :, None, None].expand_as(added[0])
    torch.testing.assert_close(added[1] - added[0], expected, **CLOSE)
    with pytest.raises(ValueError, match="expected temb=None"):
        ResnetBlock(in_channels=4, num_groups=2, temb_channels=0)(torch.zeros(1, 4, 2, 2), torch.zeros(1, 6))


@pytest.mark.parametrize("grad", [True, False])
def test_the_timestep_embedding_is_never_changed_and_trains(grad: bool) -> None:
    """B10."""
    model, temb = Model(**SMALL).double(), randn(2, 16).requires_grad_(grad)
    before = temb.detach().clone()
    model.temb = nn.Identity()  # the embedding itself is passed in
    with torch.set_grad_enabled(grad):
        out = model(randn(2, 3, 4, 4), temb)
    assert temb.equal(before)
    if grad:
        out.sum().backward()
        assert temb.grad is not None
        assert temb.grad.all()


def test_the_unet_hands_every_result_of_the_way_down_to_the_way_up() -> None:
    """B20."""
    model = Model(**SMALL | {"ch_mult": (1, 2, 3), "num_res_blocks": 2})
    assert [[b.in_channels for b in level.block] for level in model.down] == [[4, 4], [4, 8], [8, 12]]
    assert [[b.in_channels for b in level.block] for level in model.up] == [
        [8 + 4, 4 + 4, 4 + 4],
        [12 + 8, 8 + 8, 8 + 4],
        [12 + 12, 12 + 12, 12 + 8],
    ]
    assert model.temb.dense[0].weight.shape == (16, 4)
    assert model.temb.dense[1].weight.shape == (16, 16)
    assert type(Model(**SMALL, use_linear_attn=True, attn_type="none").mid.attn_1) is LinAttnBlock
    assert [len(level.attn) for level in Model(**SMALL, attn_resolutions=(8,)).up] == [0, 2]
    assert model(torch.zeros(2, 3, 8, 12), torch.tensor([1, 2])).shape == (2, 3, 8, 12)


def test_context_is_concatenated_and_the_timestep_required() -> None:
    """B21."""
    model = Model(**SMALL | {"in_channels": 5}).double()
    x, context, t = randn(1, 3, 4, 4), randn(1, 2, 4, 4), torch.tensor([9])
    assert model(x, t, context).equal(model(torch.cat([x, context], 1), t))
    assert not model(x, t, context).equal(model(x, t + 1, context))
    with pytest.raises(ValueError, match="expected timesteps, got none"):
        model(x, context=context)
    with pytest.raises(ValueError, match="expected 5 channels, context included"):
        model(x, t)
    still = Model(**SMALL, use_timestep=False)
    assert still(torch.zeros(1, 3, 4, 4)).shape == (1, 3, 4, 4)


def test_the_last_layer_is_a_weight() -> None:
    """B22."""
    model = Model(**SMALL)
    assert model.get_last_layer() is model.conv_out.weight
    assert model.get_last_layer().ndim == 4


def test_encoder_structure_and_unknown_options(caplog: pytest.LogCaptureFixture) -> None:
    """B23."""
    model = Encoder(**CODER, attn_resolutions=(8,))
    assert [len(level.attn) for level in model.down] == [0, 1]  # the nominal size counts, not the image's
    assert model.conv_out.weight.shape[0] == 10
    assert Encoder(**CODER, double_z=False).conv_out.weight.shape[0] == 5
    assert not caplog.messages
    Encoder(**CODER, use_checkpoint=True)
    assert caplog.messages == ["Encoder: ignoring unknown options use_checkpoint"]


@pytest.mark.parametrize(("side", "cells"), [(72, 9), (71, 8)])
def test_encoder_rounds_odd_sizes_down(side: int, cells: int) -> None:
    """B24."""
    model = Encoder(**CODER | {"ch_mult": (1, 1, 1, 1)})
    assert model(torch.zeros(1, 3, side, side)).shape == (1, 10, cells, cells)


def test_decoder_structure_and_silence(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    """B25."""
    with caplog.at_level(logging.WARNING):
        model = Decoder(**CODER, double_z=True)
    assert (caplog.messages, capsys.readouterr().out) == ([], "")
    assert [[b.out_channels for b in level.block] for level in model.up] == [[4, 4], [8, 8]]
    assert [hasattr(level, "upsample") for level in model.up] == [False, True]
    assert model.z_shape == (1, 5, 8, 8)


class Op(nn.Module):
    """Stands for any operation; notes what it was built and called with."""

    built: list[tuple[tuple[Any, ...], dict[str, Any]]]
    called: list[dict[str, Any]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.built.append((args, kwargs))
        self.width = kwargs.get("out_channels") or args[-1]

    def forward(self, x: Tensor, timesteps: int = 0) -> Tensor:
        self.called.append({"timesteps": timesteps})
        return x[:, :1].expand(-1, self.width, -1, -1)


def op() -> type[Op]:
    return type("Fresh", (Op,), {"built": [], "called": []})


def test_operations_get_the_documented_arguments_and_nothing_else() -> None:
    """B26."""
    conv_out_op, resnet_op, attn_op = op(), op(), op()
    Decoder(**CODER, conv_out_op=conv_out_op, resnet_op=resnet_op, attn_op=attn_op)
    assert conv_out_op.built == [((4, 3), {"kernel_size": 3, "stride": 1, "padding": 1})]
    assert resnet_op.built[0] == ((), {"in_channels": 8, "out_channels": 8, "temb_channels": 0, "dropout": 0.0})
    assert attn_op.built == [((8,), {})]


def test_decoder_forward_ends_as_told_and_filters_keywords() -> None:
    """B27."""
    z = randn(1, 5, 2, 2)
    model = Decoder(**CODER).double()
    assert model(z, timesteps=2, skip_video=True).equal(model(z))
    assert model.last_z_shape == z.shape
    limited = Decoder(**CODER, tanh_out=True).double()
    limited.load_state_dict(model.state_dict())
    assert limited(z).equal(torch.tanh(model(z)))
    early = Decoder(**CODER, give_pre_end=True).double()
    early.load_state_dict(model.state_dict())
    assert model.conv_out(functional.silu(model.norm_out(early(z)))).equal(model(z))
    ops = {"conv_out_op": op(), "resnet_op": op(), "attn_op": op()}
    Decoder(**CODER, **ops)(z.float(), timesteps=7, context=None)
    for kind in ops.values():
        assert kind.called
        assert all(call == {"timesteps": 7} for call in kind.called)
