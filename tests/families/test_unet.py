"""`Model` against a plain re-computation from its state dict, in values and gradients, and what it refuses."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from exact_vae.vae_model.families.ldm.unet import Model, get_timestep_embedding
from torch import Tensor
from torch.nn import functional

# float64 against another order of sums, through some thirty layers: 1e-12 of values around 1 and a digit of room.
CLOSE = {"rtol": 1e-11, "atol": 1e-11}
SMALL: dict[str, Any] = {
    "ch": 4,
    "out_ch": 3,
    "ch_mult": (1, 2, 3),
    "num_res_blocks": 2,
    "in_channels": 5,
    "resolution": 32,
    "num_groups": 2,
}
State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def seed(one_thread: None) -> None:
    torch.manual_seed(90)


def model(**options: Any) -> Model:
    made = Model(**SMALL | options).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # a fresh norm's 1 and 0 hide mistakes
    return made


def conv(sd: State, name: str, x: Tensor, **options: Any) -> Tensor:
    weight = sd[f"{name}.weight"]
    return functional.conv2d(x, weight, sd.get(f"{name}.bias"), **({"padding": weight.shape[-1] // 2} | options))


def norm(sd: State, name: str, x: Tensor) -> Tensor:
    return functional.group_norm(x, 2, sd[f"{name}.weight"], sd[f"{name}.bias"], eps=1e-6)


def linear(sd: State, name: str, x: Tensor) -> Tensor:
    return x @ sd[f"{name}.weight"].T + sd[f"{name}.bias"]


def block(sd: State, name: str, x: Tensor, temb: Tensor | None) -> Tensor:
    h = conv(sd, f"{name}.conv1", functional.silu(norm(sd, f"{name}.norm1", x)))
    if temb is not None:
        h = h + linear(sd, f"{name}.temb_proj", functional.silu(temb))[:, :, None, None]
    h = conv(sd, f"{name}.conv2", functional.silu(norm(sd, f"{name}.norm2", h)))
    return h + (conv(sd, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in sd else x)


def attention(sd: State, name: str, x: Tensor) -> Tensor:
    if f"{name}.to_qkv.weight" in sd:
        q, k, v = conv(sd, f"{name}.to_qkv", x).flatten(2).chunk(3, dim=1)
        context = torch.einsum("bdn,ben->bde", functional.softmax(k, dim=2), v)
        return conv(sd, f"{name}.to_out", torch.einsum("bde,bdn->ben", context, q).reshape(x.shape))
    if f"{name}.q.weight" not in sd:
        return x
    h = norm(sd, f"{name}.norm", x)
    q, k, v = (conv(sd, f"{name}.{part}", h).flatten(2) for part in "qkv")
    weights = torch.softmax(q.mT @ k / x.shape[1] ** 0.5, dim=2)
    return x + conv(sd, f"{name}.proj_out", (v @ weights.mT).reshape(x.shape))


def plain(sd: State, x: Tensor, t: Tensor | None) -> Tensor:
    """`Model` with SMALL's three levels of two blocks."""
    temb = None
    if t is not None:
        embedding = get_timestep_embedding(t, 4).double()  # has tests of its own
        temb = linear(sd, "temb.dense.1", functional.silu(linear(sd, "temb.dense.0", embedding)))
    kept = [conv(sd, "conv_in", x)]
    for i, j in product(range(3), range(3)):
        if j < 2:
            kept.append(attention(sd, f"down.{i}.attn.{j}", block(sd, f"down.{i}.block.{j}", kept[-1], temb)))
        elif f"down.{i}.downsample.conv.weight" in sd:
            padded = functional.pad(kept[-1], (0, 1, 0, 1))
            kept.append(conv(sd, f"down.{i}.downsample.conv", padded, stride=2, padding=0))
        elif i < 2:
            kept.append(functional.avg_pool2d(kept[-1], 2))
    h = attention(sd, "mid.attn_1", block(sd, "mid.block_1", kept[-1], temb))
    h = block(sd, "mid.block_2", h, temb)
    for i in (2, 1, 0):
        for j in range(3):
            h = torch.cat([h, kept.pop()], 1)
            h = attention(sd, f"up.{i}.attn.{j}", block(sd, f"up.{i}.block.{j}", h, temb))
        if i > 0:
            h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
        if f"up.{i}.upsample.conv.weight" in sd:
            h = conv(sd, f"up.{i}.upsample.conv", h)
    assert not kept
    return conv(sd, "conv_out", functional.silu(norm(sd, "norm_out", h)))


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "attention in levels": {"attn_resolutions": (32, 16)},
    "linear": {"attn_resolutions": (8,), "use_linear_attn": True, "attn_type": "none"},
    "none": {"attn_type": "none", "attn_resolutions": (16,)},
    "without timestep": {"use_timestep": False},
    "plain resampling": {"resamp_with_conv": False},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_forward_and_gradients(name: str) -> None:
    made = model(**OPTIONS[name])
    x = torch.randn(2, 5, 8, 4, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([3, 700]) if made.use_timestep else None
    names, parameters = zip(*made.named_parameters(), strict=True)
    actual, expected = made(x, t), plain(dict(made.named_parameters()), x, t)
    torch.testing.assert_close(actual, expected, **CLOSE)
    with torch.inference_mode():
        torch.testing.assert_close(made(x, t), actual.detach(), **CLOSE)
    projection = torch.randn_like(expected)
    ours, theirs = (
        torch.autograd.grad((y * projection).sum(), [x, *parameters], allow_unused=True) for y in (actual, expected)
    )
    for key, a, b in zip(["x", *names], ours, theirs, strict=True):
        assert (a is None) == (b is None) == ("temb" in key and not made.use_timestep), key
        if a is not None and b is not None:
            scale = float(b.abs().max()) + 1  # Gradients sum over all pixels: rounding goes with the largest.
            torch.testing.assert_close(a / scale, b / scale, **CLOSE, msg=lambda text, key=key: f"{key}: {text}")


def test_training_moves_every_parameter() -> None:
    made = model(attn_resolutions=(16,))
    made(torch.randn(2, 5, 8, 8, dtype=torch.float64), torch.tensor([1, 900])).square().mean().backward()
    silent = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()]
    # The bias of the keys shifts all scores of a query alike, and softmax does not see it.
    assert [name for name in silent if not name.endswith("k.bias")] == []


def test_names_are_the_checkpoints() -> None:
    keys = set(model(attn_resolutions=(16,)).state_dict())
    assert {"temb.dense.0.weight", "temb.dense.1.bias", "mid.attn_1.q.weight", "up.1.attn.2.k.weight"} <= keys
    assert {"down.0.block.0.temb_proj.weight", "down.0.downsample.conv.weight", "up.2.upsample.conv.bias"} <= keys
    assert not any(key.startswith("temb.") for key in model(use_timestep=False).state_dict())


def test_a_nominal_size_that_was_odd_is_another_one_on_the_way_up() -> None:
    made = Model(**SMALL | {"resolution": 36, "ch_mult": (1, 2, 2, 2)}, attn_resolutions=(9, 8))
    assert [len(level.attn) for level in made.down] == [0, 0, 2, 0]  # 36, 18, 9, 4
    assert [len(level.attn) for level in made.up] == [0, 0, 3, 0]  # 32, 16, 8, 4


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (1, 5, 6, 8), (1, 5, 8, 7)])
def test_sizes_that_its_skips_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected 5 channels, context included, and sides divisible by 4, got \(1, "):
        model()(torch.zeros(shape, dtype=torch.float64), torch.tensor([1]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_other_dtypes_run(dtype: torch.dtype) -> None:
    out = model().to(dtype)(torch.zeros(1, 5, 4, 4, dtype=dtype), torch.tensor([2.5]))
    assert out.dtype == dtype


@pytest.mark.parametrize("dim", [*range(4, 40), 64, 321])
def test_timestep_embedding_equals_its_formula(dim: int) -> None:
    t = torch.tensor([0.0, 1.0, 2.5, 999.0])
    expected = torch.zeros(4, dim, dtype=torch.float64)
    for i in range(dim // 2):
        angle = t.double() * math.exp(-math.log(10000) * i / (dim // 2 - 1))
        expected[:, i], expected[:, dim // 2 + i] = angle.sin(), angle.cos()
    # Angles up to 999 in float32: 999 * 2^-24 and the rounding of the frequency beside it.
    torch.testing.assert_close(get_timestep_embedding(t, dim).double(), expected, rtol=0, atol=2e-4)
