"""The table of attention back ends: the same result everywhere, and the memory that slicing promises."""

import pytest
import torch
from exact_vae.benchmarks.meter import LiveTensorMeter
from exact_vae.vae_model.attention.backends import ATTENTION, pytorch_attention, sliced_attention
from torch import Tensor

# float64 and float32: sums over positions and channels in another order, a few units in the last place of values
# around 1. bfloat16: both results and the weights have 8 bits, so a few steps of 2^-8.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 3e-2}


pytestmark = pytest.mark.usefixtures("one_thread")


def inputs(batch: int, tokens: int, width: int, dtype: torch.dtype, spread: float = 1.0) -> list[Tensor]:
    """q, k, v; `spread` widens the scores, so that a few positions win, as in trained networks."""
    generator = torch.Generator().manual_seed(1000 * tokens + width)
    q, k, v = torch.randn(3, batch, tokens, width, dtype=torch.float64, generator=generator)
    return [(spread * q).to(dtype), (spread * k).to(dtype), v.to(dtype)]


def query_bytes(tokens: int, dtype: torch.dtype) -> int:
    """What the scores of one query take: three copies in float32, or in float64."""
    return 3 * tokens * (8 if dtype == torch.float64 else 4)


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(C)) v as it is written, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    scores = torch.einsum("bnc,bmc->bnm", q, k) / q.shape[2] ** 0.5
    weights = torch.exp(scores - scores.amax(2, keepdim=True))
    return torch.einsum("bnm,bmc->bnc", weights / weights.sum(2, keepdim=True), v)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ["pytorch", "sliced", "streamed"])
def test_back_ends_compute_attention(name: str, dtype: torch.dtype) -> None:
    q, k, v = inputs(2, 33, 16, dtype)
    out = ATTENTION[name](q, k, v)
    assert out.dtype == dtype
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(out.double(), by_hand(q, k, v), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [0, 1, 3, 7, 64])
def test_sliced_equals_pytorch_for_every_token_count(rows: int, dtype: torch.dtype) -> None:
    # Slices of 0 (less than one query), 1, 3, 7 rows divide few of these counts; 64 rows take most in one slice.
    tolerance = TOLERANCE[dtype]
    for tokens in range(1, 71):
        q, k, v = inputs(1 + tokens % 3, tokens, 8, dtype)
        max_bytes = max(1, rows * query_bytes(tokens, dtype))
        expected = pytorch_attention(q, k, v)
        torch.testing.assert_close(
            sliced_attention(q, k, v, max_bytes=max_bytes), expected, rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("max_bytes", [None, 1, 100, 5000, 2**40])
def test_sliced_equals_pytorch_for_every_batch_and_bound(batch: int, max_bytes: int | None) -> None:
    q, k, v = inputs(batch, 47, 24, torch.float64, spread=2.0)
    out = sliced_attention(q, k, v, max_bytes=max_bytes)
    # Scores reach 10 and more here, so their last place weighs more: 1e-12 still leaves three digits of room.
    torch.testing.assert_close(out, pytorch_attention(q, k, v), rtol=1e-12, atol=1e-12)


def test_sliced_takes_inputs_whose_channels_are_not_dense() -> None:
    dense = inputs(2, 13, 8, torch.float64)
    strided = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in dense]
    # The same numbers from other addresses; only the order of summing may differ.
    torch.testing.assert_close(sliced_attention(*strided), sliced_attention(*dense), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_sixteen_bit_slices_err_no_more_than_the_whole(spread: float, dtype: torch.dtype) -> None:
    q, k, v = inputs(2, 256, 64, dtype, spread)
    exact = by_hand(q, k, v)
    whole = (pytorch_attention(q, k, v).double() - exact).square().mean().sqrt()
    sliced = (sliced_attention(q, k, v, max_bytes=2**16).double() - exact).square().mean().sqrt()
    # The project's bound for 16-bit arithmetic: 1.15 times the error of the ordinary run against float64.
    assert sliced <= 1.15 * whole


@pytest.mark.parametrize("dtype", [*TOLERANCE, torch.float16])
@pytest.mark.parametrize("tokens", [5, 32, 65])
@pytest.mark.parametrize("rows", [0, 1, 2, 10, 1000])
def test_scores_stay_within_max_bytes(rows: int, tokens: int, dtype: torch.dtype) -> None:
    q, k, v = inputs(2, tokens, 1, dtype)
    one_query = query_bytes(tokens, dtype)
    max_bytes = rows * one_query + one_query // 2  # Half a query more than whole rows: it must be left unused.
    with LiveTensorMeter() as meter:
        out = sliced_attention(q, k, v, max_bytes=max_bytes)
        assert meter.current_bytes == out.nbytes  # Nothing but the result stays.
    # 16-bit keys and values of one image may be copied to float32 beside the scores: width 1 here.
    copies = 0 if dtype in (torch.float32, torch.float64) else 2 * tokens * 4
    slice_rows = min(tokens, max(1, rows))
    assert meter.peak_bytes - out.nbytes <= slice_rows * one_query + copies
    # And the slices do use the memory they are given, or this test would measure nothing.
    assert meter.peak_bytes - out.nbytes >= slice_rows * one_query // 3


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_back_ends_agree_on_cuda(dtype: torch.dtype) -> None:
    q, k, v = (t.cuda() for t in inputs(2, 333, 512, dtype))
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(
        sliced_attention(q, k, v, max_bytes=2**16), pytorch_attention(q, k, v), rtol=tolerance, atol=tolerance
    )
