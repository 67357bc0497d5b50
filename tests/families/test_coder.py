"""Encoder and Decoder against a plain re-computation from the state dict, in values, gradients and memory."""

import logging
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from exact_vae.vae_model.errors import InputError
from exact_vae.vae_model.families.ldm.coder import Decoder, Encoder
from exact_vae.vae_model.families.ldm.layers import (
    AttnBlock,
    Downsample,
    LinAttnBlock,
    NoAttention,
    ResnetBlock,
    Upsample,
)
from torch import Tensor, nn
from torch.nn import functional

# float64 against another order of sums, through some twenty layers: 1e-12 of values around 1 and a digit of room.
CLOSE = {"rtol": 1e-11, "atol": 1e-11}

SMALL: dict[str, Any] = {
    "ch": 4,
    "out_ch": 3,
    "ch_mult": (1, 2, 3),
    "num_res_blocks": 2,
    "in_channels": 3,
    "resolution": 64,
    "z_channels": 5,
    "num_groups": 2,
}
State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    """Fixed numbers, and one thread: these tensors are too small to share out."""
    torch.manual_seed(40)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def double(model: nn.Module) -> nn.Module:
    """The model in float64 with random affine parameters, for a fresh norm's 1 and 0 hide mistakes."""
    with torch.no_grad():
        for parameter in model.double().parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def conv(sd: State, name: str, x: Tensor, **options: Any) -> Tensor:
    weight = sd[f"{name}.weight"]
    return functional.conv2d(x, weight, sd[f"{name}.bias"], **({"padding": weight.shape[-1] // 2} | options))


def norm(sd: State, name: str, x: Tensor) -> Tensor:
    return functional.group_norm(x, 2, sd[f"{name}.weight"], sd[f"{name}.bias"], eps=1e-6)


def block(sd: State, name: str, x: Tensor) -> Tensor:
    h = conv(sd, f"{name}.conv1", functional.silu(norm(sd, f"{name}.norm1", x)))
    h = conv(sd, f"{name}.conv2", functional.silu(norm(sd, f"{name}.norm2", h)))
    return h + (conv(sd, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in sd else x)


def attention(sd: State, name: str, x: Tensor) -> Tensor:
    if f"{name}.q.weight" not in sd:
        return x
    h = norm(sd, f"{name}.norm", x)
    q, k, v = (conv(sd, f"{name}.{part}", h).flatten(2) for part in "qkv")  # (B, C, N)
    weights = torch.softmax(q.mT @ k / x.shape[1] ** 0.5, dim=2)
    return x + conv(sd, f"{name}.proj_out", (v @ weights.mT).reshape(x.shape))


def level_of(sd: State, name: str, h: Tensor, blocks: int) -> Tensor:
    for j in range(blocks):
        h = attention(sd, f"{name}.attn.{j}", block(sd, f"{name}.block.{j}", h))
    return h


def middle(sd: State, h: Tensor) -> Tensor:
    return block(sd, "mid.block_2", attention(sd, "mid.attn_1", block(sd, "mid.block_1", h)))


def finish(sd: State, h: Tensor) -> Tensor:
    return conv(sd, "conv_out", functional.silu(norm(sd, "norm_out", h)))


def plain_encode(sd: State, x: Tensor) -> Tensor:
    h = conv(sd, "conv_in", x)
    for i in range(3):
        h = level_of(sd, f"down.{i}", h, 2)
        if i < 2:
            h = conv(sd, f"down.{i}.downsample.conv", functional.pad(h, (0, 1, 0, 1)), stride=2, padding=0)
    return finish(sd, middle(sd, h))


def plain_decode(sd: State, z: Tensor) -> Tensor:
    h = middle(sd, conv(sd, "conv_in", z))
    for i in (2, 1, 0):
        h = level_of(sd, f"up.{i}", h, 3)
        if i > 0:
            h = conv(sd, f"up.{i}.upsample.conv", h.repeat_interleave(2, 2).repeat_interleave(2, 3))
    return finish(sd, h)


def assert_equals_plain(model: nn.Module, plain: Callable[[State, Tensor], Tensor], x: Tensor) -> None:
    """Equal values with and without autograd, and equal gradients in the input and every parameter."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    x.requires_grad_()
    actual, expected = model(x), plain(dict(model.named_parameters()), x)
    torch.testing.assert_close(actual, expected, **CLOSE)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), expected.detach(), **CLOSE)
    projection = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad((y * projection).sum(), [x, *parameters]) for y in (actual, expected))
    for name, a, b in zip(["x", *names], ours, theirs, strict=True):
        scale = float(b.abs().max()) + 1
        # Gradients sum over all pixels, so their rounding goes with the largest of them.
        torch.testing.assert_close(a / scale, b / scale, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("attn_resolutions", [(), (32,), (64, 16)])
@pytest.mark.parametrize("size", [(8, 12), (11, 7)])
def test_encoder_forward_and_gradients(size: tuple[int, int], attn_resolutions: tuple[int, ...]) -> None:
    """B24."""
    model = double(Encoder(**SMALL, attn_resolutions=attn_resolutions))
    assert_equals_plain(model, plain_encode, torch.randn(2, 3, *size, dtype=torch.float64))


@pytest.mark.parametrize("attn_resolutions", [(), (32,), (64, 16)])
@pytest.mark.parametrize("size", [(2, 3), (1, 1)])
def test_decoder_forward_and_gradients(size: tuple[int, int], attn_resolutions: tuple[int, ...]) -> None:
    """B27."""
    model = double(Decoder(**SMALL, attn_resolutions=attn_resolutions))
    assert_equals_plain(model, plain_decode, torch.randn(2, 5, *size, dtype=torch.float64))


@pytest.mark.parametrize(("side", "cells"), [(72, 9), (71, 8), (8, 1), (15, 1)])
def test_odd_sizes_round_down_at_every_level(side: int, cells: int) -> None:
    """B24."""
    model = Encoder(**SMALL | {"ch_mult": (1, 1, 1, 1), "num_res_blocks": 1})
    assert model(torch.zeros(1, 3, side, 8)).shape == (1, 10, cells, 1)


def test_encoder_structure() -> None:
    """B23."""
    model = Encoder(**SMALL)
    assert [[b.out_channels for b in level.block] for level in model.down] == [[4, 4], [8, 8], [12, 12]]
    assert [hasattr(level, "downsample") for level in model.down] == [True, True, False]
    assert model.conv_in.weight.shape == (4, 3, 3, 3)
    assert model.conv_out.weight.shape == (10, 12, 3, 3)
    assert Encoder(**SMALL, double_z=False).conv_out.weight.shape == (5, 12, 3, 3)
    assert not any("temb" in key for key in model.state_dict())
    other = Encoder(**SMALL | {"out_ch": 7})  # accepted and unused
    assert {k: t.shape for k, t in other.state_dict().items()} == {k: t.shape for k, t in model.state_dict().items()}


def test_attention_follows_the_configured_resolution() -> None:
    """B23."""
    model = Encoder(**SMALL, attn_resolutions=(32,))
    assert [len(level.attn) for level in model.down] == [0, 2, 0]
    assert [len(level.attn) for level in Encoder(**SMALL, attn_resolutions=(64, 16)).down] == [2, 0, 2]
    assert [len(level.attn) for level in Encoder(**SMALL, attn_resolutions=(128,)).down] == [0, 0, 0]
    assert model(torch.zeros(1, 3, 128, 32)).shape == (1, 10, 32, 8)  # whatever the image's own size is


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, AttnBlock),
        ({"attn_type": "none"}, NoAttention),
        ({"attn_type": "linear"}, LinAttnBlock),
        ({"attn_type": "none", "use_linear_attn": True}, LinAttnBlock),
    ],
)
def test_attention_type_is_honoured(options: dict[str, Any], kind: type[nn.Module]) -> None:
    """B23 and B25."""
    for model in (Encoder(**SMALL, **options), Decoder(**SMALL, **options)):
        assert type(model.mid.attn_1) is kind


@pytest.mark.parametrize("kind", [Encoder, Decoder])
def test_unknown_options_are_named_in_a_warning(
    kind: type[nn.Module], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """B23 and B25."""
    with caplog.at_level(logging.WARNING):
        kind(**SMALL, double_z=True)
        assert not caplog.messages
        kind(**SMALL, use_checkpoint=True, mask_channels=1)
    assert caplog.messages == [f"{kind.__name__}: ignoring unknown options mask_channels, use_checkpoint"]
    with pytest.raises(InputError, match="got atn_type, chmult: attn_type, ch_mult are probably meant"):
        kind(**SMALL, atn_type="none", chmult=1)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [Encoder, Decoder])
def test_dropout_and_plain_resampling_reach_the_layers(kind: type[nn.Module]) -> None:
    """B23 and B25."""
    model = kind(**SMALL, dropout=0.25, resamp_with_conv=False)
    assert {layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)} == {0.25}
    assert not any("sample" in key for key in model.state_dict())
    assert model.eval()(torch.zeros(1, 3 if kind is Encoder else 5, 8, 8)).shape[2:] == (
        (2, 2) if kind is Encoder else (32, 32)
    )


def test_level_0_of_the_decoder_has_full_resolution() -> None:
    """B25."""
    model = Decoder(**SMALL)
    assert [[b.out_channels for b in level.block] for level in model.up] == [[4] * 3, [8] * 3, [12] * 3]
    assert [b.in_channels for b in model.up[1].block] == [12, 8, 8]
    assert [hasattr(level, "upsample") for level in model.up] == [False, True, True]
    assert model.conv_in.weight.shape == (12, 5, 3, 3)
    assert model.conv_out.weight.shape == (3, 4, 3, 3)
    assert model.z_shape == (1, 5, 16, 16)
    with_attention = Decoder(**SMALL, attn_resolutions=(64,))
    assert [len(level.attn) for level in with_attention.up] == [3, 0, 0]


def test_give_pre_end_and_tanh_out() -> None:
    """B25."""
    z = torch.randn(1, 5, 2, 3)
    model = Decoder(**SMALL).eval()
    raw = model(z)
    model.give_pre_end = True
    h = model(z)
    assert h.shape == (1, 4, 8, 12)
    assert model.conv_out(functional.silu(model.norm_out(h))).equal(raw)
    limited = Decoder(**SMALL, tanh_out=True).eval()
    limited.load_state_dict(model.state_dict())
    assert limited(z).equal(torch.tanh(raw))
    assert Decoder(**SMALL, give_pre_end=True)(z).shape == (1, 4, 8, 12)


class Recorder(nn.Module):
    """Passes x on, changing its channels where asked; notes what it is built and called with."""

    built: list[tuple[tuple[Any, ...], dict[str, Any]]]
    called: list[dict[str, Any]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.built.append((args, kwargs))
        self.width = kwargs.get("out_channels") or args[-1]

    def forward(self, x: Tensor, timesteps: int = 0, skip: bool = False) -> Tensor:
        self.called.append({"timesteps": timesteps, "skip": skip})
        return x[:, :1].expand(-1, self.width, -1, -1)


def recorder() -> type[Recorder]:
    return type("Fresh", (Recorder,), {"built": [], "called": []})


def test_operations_are_called_as_documented_and_get_nothing_else() -> None:
    """B26."""
    conv_out_op, resnet_op, attn_op = recorder(), recorder(), recorder()
    ops = {"conv_out_op": conv_out_op, "resnet_op": resnet_op, "attn_op": attn_op}
    Decoder(**SMALL, dropout=0.5, attn_resolutions=(16,), **ops)
    assert conv_out_op.built == [((4, 3), {"kernel_size": 3, "stride": 1, "padding": 1})]
    assert len(resnet_op.built) == 2 + 3 * 3
    options = {"in_channels": 12, "out_channels": 12, "temb_channels": 0, "dropout": 0.5}
    assert resnet_op.built[0] == ((), options)
    assert all(set(kwargs) == set(options) for _, kwargs in resnet_op.built)
    assert attn_op.built == [((12,), {})] * 4


def test_keywords_reach_what_accepts_them() -> None:
    """B27."""
    ops = {"conv_out_op": recorder(), "resnet_op": recorder(), "attn_op": recorder()}
    model = Decoder(**SMALL, **ops)
    model(torch.zeros(2, 5, 2, 3), timesteps=7, context=None)
    for name, calls in (("conv_out_op", 1), ("resnet_op", 11), ("attn_op", 1)):
        assert ops[name].called == [{"timesteps": 7, "skip": False}] * calls, name
    assert model.last_z_shape == (2, 5, 2, 3)


def test_default_operations_ignore_keywords() -> None:
    """B27."""
    z, model = torch.randn(1, 5, 2, 2), Decoder(**SMALL).eval()
    assert model(z, timesteps=3, skip_video=True).equal(model(z))
    assert isinstance(model.mid.block_1, ResnetBlock)


def test_last_layer_is_the_last_convolutions_weight() -> None:
    """A13."""
    model = Decoder(**SMALL)
    assert model.get_last_layer() is model.conv_out.weight


@pytest.mark.parametrize(("kind", "shape"), [(Encoder, (1, 3, 16, 16)), (Decoder, (1, 5, 4, 4))])
def test_no_earlier_activation_is_kept_while_later_ones_are_computed(
    kind: type[nn.Module], shape: tuple[int, ...]
) -> None:
    """B24 and B27."""
    model = kind(**SMALL).eval()
    outputs: list[tuple[str, weakref.ref[Tensor]]] = []
    kept: list[str] = []

    def check(name: str, x: Tensor) -> None:
        kept.extend(f"{old} during {name}" for old, ref in outputs if ref() is not None and ref() is not x)

    for name, layer in model.named_modules():
        if isinstance(layer, (ResnetBlock, AttnBlock, Upsample, Downsample)):
            layer.register_forward_pre_hook(lambda _, args, name=name: check(name, args[0]))
            layer.register_forward_hook(lambda _, args, out, name=name: outputs.append((name, weakref.ref(out))))
    with torch.inference_mode():
        model(torch.zeros(shape))
    assert kept == []
