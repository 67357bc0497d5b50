"""Attention streamed in large slices, as on GPUs, against softmax attention over everything at once."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from exact_vae.benchmarks.meter import LiveTensorMeter
from exact_vae.vae_model.attention.streamed import (
    LargeStreamedAttention,
    StreamedAttention,
    begin,
    large_bytes,
    runs_large,
    streaming_bytes,
)
from torch import Tensor
from torch.nn import functional

pytestmark = pytest.mark.usefixtures("inference")
CUDA = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])


def tokens(batch: int, queries: int, keys: int, channels: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """q, k and v; some queries see few keys and others all."""
    generator = torch.Generator().manual_seed(queries + keys)
    parts = [torch.randn(batch, n, channels, generator=generator) for n in (queries, keys, keys)]
    parts[0] *= torch.linspace(0.1, 4, queries)[:, None]
    parts[2] += torch.linspace(-2, 2, keys)[:, None]
    return [part.to(device, dtype) for part in parts]


def truth(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = q.double(), k.double(), v.double()
    return torch.softmax(q @ k.transpose(1, 2) * q.shape[2] ** -0.5, dim=2) @ v


def attend(q: Tensor, k: Tensor, v: Tensor, cuts: list[int], slice_tokens: int) -> Tensor:
    attention = LargeStreamedAttention(q, v.shape[2], slice_tokens)
    for start, end in pairwise([0, *cuts, k.shape[1]]):
        attention.add(k[:, start:end], v[:, start:end])
    return attention.result()


@DEVICES
@pytest.mark.parametrize("slice_tokens", [1, 7, 16, 64, 4096])
@pytest.mark.parametrize("cuts", [[], [1], [5, 40, 58]], ids=str)
def test_any_slices_and_blocks(cuts: list[int], slice_tokens: int, device: str) -> None:
    for batch, queries, channels in ((1, 47, 8), (2, 13, 24), (3, 1, 16)):
        q, k, v = tokens(batch, queries, 59, channels, torch.float32, device)
        result = attend(q, k, v, cuts, slice_tokens)
        assert result.dtype == torch.float32
        torch.testing.assert_close(result.double(), truth(q, k, v), rtol=0, atol=2e-5)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=CUDA)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [257, 4096, 9000])
def test_16_bit_errors_are_no_larger_than_pytorchs(count: int, dtype: torch.dtype, device: str) -> None:
    q, k, v = tokens(1, count, count, 512, dtype, device)
    assert isinstance(begin(q, 512), LargeStreamedAttention)
    expected = truth(q, k, v)
    plain = functional.scaled_dot_product_attention(*(x.unsqueeze(1) for x in (q, k, v))).squeeze(1)
    theirs = (plain.double() - expected).square().mean().sqrt()
    for cuts in ([], [count // 3]):
        ours = (attend(q, k, v, cuts, 4096).double() - expected).square().mean().sqrt()
        assert 0 < ours <= 1.15 * theirs


@DEVICES
@pytest.mark.parametrize("scale", [1e3, -1e3])
def test_huge_scores_neither_overflow_nor_vanish(scale: float, device: str) -> None:
    q, k, v = tokens(1, 32, 32, 16, torch.float32, device)
    result = attend(q * scale, k * abs(scale), v, [1, 9, 30], 8)
    torch.testing.assert_close(result.double(), truth(q * scale, k * abs(scale), v), rtol=0, atol=1e-5)


def test_it_holds_what_is_told() -> None:
    for queries, keys in ((9000, 9000), (100, 9000), (9000, 50)):
        q, k, v = (torch.empty(1, n, 64, device="meta", dtype=torch.float16) for n in (queries, keys, keys))
        with LiveTensorMeter("meta") as meter:
            attention = begin(q, 64)
            attention.add(k, v)
            attention.result()
        told = streaming_bytes(queries, keys, 64, torch.float16, "meta")
        assert told == large_bytes(queries, keys, 64, torch.float16)
        assert 0.85 * told <= meter.peak_bytes <= 1.05 * told


def test_processors_and_float64_keep_the_other_method() -> None:
    assert not runs_large("cpu", torch.float16)
    assert not runs_large("cuda", torch.float64)
    assert isinstance(begin(torch.ones(1, 2, 4), 4), StreamedAttention)
