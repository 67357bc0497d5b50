"""The attention layers against plain re-computations in float64, in values and in gradients.

Rows B14 and B15 (PyTorch's attention, running out of memory) are the choice of a back end, as is a call that xformers
does not take: tests/attention/test_choice.py and tests/model_management/test_oom.py. B11's memory bound is in
tests/attention/test_backends.py.
"""

from collections.abc import Iterator

import pytest
import torch
from exact_vae.model_management import attention
from exact_vae.vae_model.attention.backends import ATTENTION, sliced_attention
from exact_vae.vae_model.families.ldm.layers import AttnBlock, LinAttnBlock, NoAttention, make_attn, set_attention
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


def plain_conv(x: Tensor, conv: nn.Module) -> Tensor:
    return functional.conv2d(x, conv.weight, conv.bias, padding=conv.weight.shape[-1] // 2)


def assert_same_with_gradients(module: nn.Module, actual: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    """Equal values, and equal gradients of a random projection in the inputs and in every parameter."""
    torch.testing.assert_close(actual, expected, **CLOSE)
    weights = torch.randn_like(expected)
    wanted = [*inputs, *module.parameters()]
    gradients = [torch.autograd.grad((y * weights).sum(), wanted) for y in (actual, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)  # Long sums: two digits less than values.


def plain_attention(layer: AttnBlock, x: Tensor, groups: int) -> Tensor:
    h = plain_norm(x, layer.norm, groups)
    q, k, v = (plain_conv(h, convolution).flatten(2) for convolution in (layer.q, layer.k, layer.v))  # (B, C, N)
    weights = torch.softmax(q.mT @ k / x.shape[1] ** 0.5, dim=2)  # (B, queries, keys)
    return x + plain_conv((v @ weights.mT).reshape(x.shape), layer.proj_out)


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (8, 8)])
def test_attention_block_in_slices_of_any_number_of_positions(size: tuple[int, int]) -> None:
    """B11 and B12."""
    layer, x = double(AttnBlock(8, num_groups=4)), randn(2, 8, *size)
    expected = plain_attention(layer, x, 4)
    bytes_per_query = 3 * 8 * size[0] * size[1]
    for rows in (1, 2, 5, 1000):
        layer.attend = lambda q, k, v, rows=rows: sliced_attention(q, k, v, max_bytes=rows * bytes_per_query)
        torch.testing.assert_close(layer(x), expected, **CLOSE)


def test_xformers_out_of_memory_goes_on_with_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """B13."""

    def full(*_: Tensor, **__: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    layer, x = double(AttnBlock(8, num_groups=4)), randn(2, 8, 5, 3)
    monkeypatch.setattr(attention, "_candidates", lambda *_: ["xformers", "sliced"])
    layer.attend = lambda q, k, v: attention.attend(q, k, v, table={**ATTENTION, "xformers": full})
    torch.testing.assert_close(layer(x), plain_attention(layer, x, 4), **CLOSE)


def test_attention_block_and_its_gradients() -> None:
    """B16."""
    layer, x = double(AttnBlock(8, num_groups=4)), randn(2, 8, 3, 5).requires_grad_()
    assert_same_with_gradients(layer, layer(x), plain_attention(layer, x, 4), [x])
    shapes = {key: tuple(t.shape) for key, t in layer.state_dict().items() if t.ndim > 1}
    assert shapes == {f"{name}.weight": (8, 8, 1, 1) for name in ("q", "k", "v", "proj_out")}
    assert "norm.weight" in layer.state_dict()


def test_attention_ignores_keywords() -> None:
    """B16."""
    x = randn(1, 4, 2, 2)
    for attn_type in ("vanilla", "linear", "none"):
        layer = double(make_attn(4, attn_type, {"num_groups": 2}))
        assert layer(x, timesteps=3, context=None).equal(layer(x))


def test_back_end_is_chosen_per_call_for_every_layer() -> None:
    """B16."""
    model = nn.Sequential(AttnBlock(4, num_groups=2), nn.Sequential(AttnBlock(4, num_groups=2)), NoAttention(4))
    calls: list[tuple[int, ...]] = []

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        calls.append(tuple(q.shape))
        return v

    model(torch.zeros(2, 4, 3, 5))
    assert not calls
    set_attention(model, attend)
    model(torch.zeros(2, 4, 3, 5))
    assert calls == [(2, 15, 4), (2, 15, 4)]


def test_the_type_of_attention_chooses_the_layer() -> None:
    """B17."""
    kinds = {"vanilla": AttnBlock, "vanilla-xformers": AttnBlock, "linear": LinAttnBlock, "none": NoAttention}
    assert {name: type(make_attn(32, name)) for name in kinds} == kinds
    assert type(make_attn(32)) is AttnBlock
    assert make_attn(12, "vanilla", {"num_groups": 3}).norm.num_groups == 3
    assert not make_attn(32, "none").state_dict()
    x = randn(1, 4, 2, 2)
    assert make_attn(4, "none")(x).equal(x)
    with pytest.raises(ValueError, match="expected one of vanilla, vanilla-xformers, linear, none, got 'flash'"):
        make_attn(32, "flash")


def test_linear_attention_and_its_gradients() -> None:
    """B18."""
    layer, x = double(LinAttnBlock(6)), randn(2, 6, 3, 4).requires_grad_()
    assert {key: tuple(t.shape) for key, t in layer.state_dict().items()} == {
        "to_qkv.weight": (18, 6, 1, 1),
        "to_out.weight": (6, 6, 1, 1),
        "to_out.bias": (6,),
    }
    q, k, v = torch.einsum("tci,bin->tbcn", layer.to_qkv.weight.view(3, 6, 6), x.flatten(2))
    keys = torch.exp(k) / torch.exp(k).sum(2, keepdim=True)  # softmax over positions
    context = torch.einsum("bdn,ben->bde", keys, v)
    mixed = torch.einsum("bde,bdn->ben", context, q).reshape(x.shape)  # no norm, no scale, no residual
    assert_same_with_gradients(layer, layer(x), plain_conv(mixed, layer.to_out), [x])
