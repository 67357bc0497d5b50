"""The requirements B11-B19 on attention, one test for each at least.

More of each: families/test_layers_attention.py, attention/test_backends.py, attention/test_choice.py,
model_management/test_oom.py.
"""

import sys
from typing import Any

import pytest
import torch
from exact_vae.benchmarks.meter import LiveTensorMeter
from exact_vae.model_management import attention
from exact_vae.model_management.oom import is_oom
from exact_vae.vae_model.attention.backends import ATTENTION, pytorch_attention, sliced_attention
from exact_vae.vae_model.checkpoint.load import load_model
from exact_vae.vae_model.families.ldm import layers
from exact_vae.vae_model.families.ldm.autoencoder import AutoencoderKL
from exact_vae.vae_model.families.ldm.coder import Decoder, Encoder
from exact_vae.vae_model.families.ldm.layers import AttnBlock, LinAttnBlock, NoAttention, make_attn
from exact_vae.vae_model.families.ldm.unet import Model
from torch import Tensor

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


@pytest.mark.parametrize("tokens", [1, 30, 63, 64, 101])
def test_every_number_of_positions_is_sliced(tokens: int) -> None:
    """B11."""
    q, k, v = randn(3, 1, tokens, 4)
    one_query = 3 * 8 * tokens
    expected = pytorch_attention(q, k, v)
    for rows in (1, 4, 1000):
        with LiveTensorMeter() as meter:
            out = sliced_attention(q, k, v, max_bytes=rows * one_query)
        assert (
            meter.peak_bytes - out.nbytes <= min(rows, tokens) * one_query + 2 * tokens * 4 * 8
        )  # and one image's q, k
        torch.testing.assert_close(out, expected, **CLOSE)


def test_the_block_takes_and_gives_four_dimensions() -> None:
    """B12."""
    block, x = AttnBlock(4, num_groups=2).double(), randn(2, 4, 3, 5)
    seen: list[tuple[int, ...]] = []

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.extend(tuple(t.shape) for t in (q, k, v))
        return v

    block.attend = attend
    with torch.no_grad():
        block.proj_out.weight.copy_(torch.eye(4)[:, :, None, None])
        block.proj_out.bias.zero_()
    torch.testing.assert_close(block(x), x + block.v(block.norm(x)), **CLOSE)  # every value is back in its place
    assert seen == [(2, 15, 4)] * 3


@pytest.mark.parametrize("error", [NotImplementedError("no kernel"), torch.OutOfMemoryError("out of memory")])
def test_xformers_gives_way_to_slices(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """B13."""

    def fail(*_: Tensor, **__: Any) -> Tensor:
        raise error

    q, k, v = randn(3, 1, 7, 4)
    monkeypatch.setattr(attention, "_candidates", lambda *_: ["xformers", "sliced"])
    out = attention.attend(q, k, v, table={**ATTENTION, "xformers": fail})
    torch.testing.assert_close(out, pytorch_attention(q, k, v), **CLOSE)


def test_pytorch_attention_gives_way_to_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """B14."""

    def full(*_: Tensor, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    q, k, v = randn(3, 2, 7, 4)
    scores = torch.softmax(q @ k.mT / 2, dim=2)
    torch.testing.assert_close(pytorch_attention(q, k, v), scores @ v, **CLOSE)
    monkeypatch.setattr(attention, "_candidates", lambda *_: ["pytorch", "sliced"])
    torch.testing.assert_close(attention.attend(q, k, v, table={**ATTENTION, "pytorch": full}), scores @ v, **CLOSE)


def test_out_of_memory_is_pytorchs_error_and_the_cache_is_emptied_outside_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """B15."""
    assert is_oom(torch.OutOfMemoryError("CUDA out of memory."))
    assert not is_oom(RuntimeError("shapes differ"))
    emptied: list[object] = []

    def full(*_: Tensor, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    def empty() -> None:
        emptied.append(sys.exc_info()[0])

    q, k, v = randn(3, 1, 5, 4)
    monkeypatch.setattr(attention, "soft_empty_cache", empty)
    attention.attend(q, k, v, table={**ATTENTION, "pytorch": full, "streamed": full})
    assert emptied
    assert set(emptied) == {None}


def test_attention_block_ignores_keywords_and_chooses_per_call() -> None:
    """B16."""
    block, x = AttnBlock(4, num_groups=2).double(), randn(1, 4, 2, 3)
    expected = block(x)
    assert block(x, timesteps=3, image_only_indicator=None).equal(expected)
    layers.set_attention(block, sliced_attention)
    torch.testing.assert_close(block(x), expected, **CLOSE)
    assert set(block.state_dict()) == {
        f"{name}.{kind}" for name in ("norm", "q", "k", "v", "proj_out") for kind in ("weight", "bias")
    }


def test_make_attn_honours_its_type() -> None:
    """B17."""
    kinds = {"vanilla": AttnBlock, "vanilla-xformers": AttnBlock, "linear": LinAttnBlock, "none": NoAttention}
    for name, kind in kinds.items():
        assert type(make_attn(32, name)) is kind
        assert type(Encoder(**CODER, attn_type=name).mid.attn_1) is kind
        assert type(Decoder(**CODER, attn_type=name).mid.attn_1) is kind
        assert type(Model(**SMALL, attn_type=name).mid.attn_1) is kind
    with pytest.raises(ValueError, match=r"expected one of vanilla, .*, got 'memory-efficient-cross-attn'"):
        make_attn(32, "memory-efficient-cross-attn")


def test_linear_attention_has_no_norm_no_scale_and_no_residual() -> None:
    """B18."""
    layer, x = LinAttnBlock(3).double(), randn(1, 3, 2, 4)
    assert set(layer.state_dict()) == {"to_qkv.weight", "to_out.weight", "to_out.bias"}
    q, k, v = layer.to_qkv(x).flatten(2).chunk(3, dim=1)
    weights = torch.exp(k) / torch.exp(k).sum(2, keepdim=True)  # over positions
    expected = layer.to_out(((v @ weights.mT) @ q).reshape(x.shape))
    torch.testing.assert_close(layer(x), expected, **CLOSE)


@pytest.mark.parametrize("attn_type", ["none", "linear", "vanilla"])
def test_the_kind_of_attention_is_read_from_the_keys(attn_type: str) -> None:
    """B19."""
    model = AutoencoderKL(4, ddconfig=CODER | {"attn_type": attn_type, "ch": 32, "num_groups": 32})
    assert any("mid.attn_1" in key for key in model.state_dict()) is (attn_type != "none")
    loaded = load_model(model.state_dict()).model
    assert type(loaded.encoder.mid.attn_1) is type(model.encoder.mid.attn_1)
    assert type(loaded.decoder.mid.attn_1) is type(model.decoder.mid.attn_1)
