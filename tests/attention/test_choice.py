"""Which attention back end is chosen, and what happens when memory runs out in the middle of it."""

import importlib
import sys
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from exact_vae.benchmarks.meter import LiveTensorMeter
from exact_vae.model_management import attention, choose_attention, pytorch_attention_enabled, xformers_enabled_vae
from exact_vae.model_management.attention import attend
from exact_vae.vae_model.attention.backends import ATTENTION, pytorch_attention, sliced_attention
from torch import Tensor

GIB = 1024**3
CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda", 0), torch.device("mps", 0)
BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


@pytest.fixture
def nvidia(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Call it to pretend that there is an NVIDIA card of that compute capability, without xformers unless told."""

    def pretend(major: int = 8, xformers: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
        monkeypatch.setattr(attention, "xformers_enabled_vae", lambda: xformers)

    return pretend


@pytest.fixture
def fresh_cache() -> Iterator[None]:
    xformers_enabled_vae.cache_clear()
    yield
    xformers_enabled_vae.cache_clear()


def pretend_xformers(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "xformers", SimpleNamespace(__version__=version))
    monkeypatch.setitem(sys.modules, "xformers.ops", SimpleNamespace())


@pytest.mark.usefixtures("fresh_cache")
@pytest.mark.parametrize(
    ("version", "enabled"), [("0.0.17", True), ("0.0.18", False), ("0.0.18+cu118", False), ("0.0.28.post1", True)]
)
def test_xformers_but_for_one_version(monkeypatch: pytest.MonkeyPatch, version: str, enabled: bool) -> None:
    pretend_xformers(monkeypatch, version)
    assert xformers_enabled_vae() is enabled


@pytest.mark.usefixtures("fresh_cache")
def test_xformers_without_cuda_is_not_even_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_xformers(monkeypatch, "0.0.28")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(importlib, "import_module", lambda name: pytest.fail(f"imported {name}"))
    assert not xformers_enabled_vae()


@pytest.mark.usefixtures("fresh_cache")
@pytest.mark.parametrize("error", [ImportError("absent"), OSError("DLL load failed"), RuntimeError("other PyTorch")])
def test_xformers_that_does_not_load(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(name: str) -> object:
        raise error

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib, "import_module", fail)
    assert not xformers_enabled_vae()


def test_pytorch_attention_but_on_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    assert pytorch_attention_enabled()
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert not pytorch_attention_enabled()
    assert choose_attention(64, 512, FP32, CPU, 100 * GIB) == "sliced"


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32, FP64])
def test_the_cpu_has_a_fused_kernel_for_every_dtype(dtype: torch.dtype) -> None:
    # 65536 positions: scores would take 16 GiB, result and accumulator under 1 GiB.
    assert choose_attention(65536, 512, dtype, CPU, GIB) == "pytorch"
    assert choose_attention(65536, 512, dtype, CPU, 64 * 1024**2) == "sliced"


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32, FP64])
def test_pytorchs_attention_on_the_cpu_really_is_fused(dtype: torch.dtype) -> None:
    q, k, v = torch.randn(3, 2, 1024, 512).to(dtype)
    with LiveTensorMeter() as meter:
        pytorch_attention(q, k, v)
    # One N x N plane of one image and dtype is 1024 * 1024 numbers; the result has as many in all.
    assert meter.peak_bytes <= 2 * 1024 * 512 * dtype.itemsize + 2 * 1024 * 8


@pytest.mark.parametrize(
    ("major", "dtype", "width", "fused"),
    [
        (8, BF16, 512, True),
        (8, FP32, 512, True),
        (7, FP16, 512, True),
        (8, BF16, 36, True),  # Not a multiple of 8, but narrow enough for the flash kernel.
        (7, BF16, 512, False),
        (8, FP64, 512, False),
        (8, BF16, 300, False),
        (7, FP16, 36, False),
        (8, FP32, 510, False),
    ],
)
def test_cuda_writes_the_scores_only_where_no_kernel_takes_the_call(
    nvidia: Callable[..., None], major: int, dtype: torch.dtype, width: int, fused: bool
) -> None:
    nvidia(major)
    # 16384 positions: one copy of the scores is 1 GiB in float32. 2 GiB hold a fused kernel's needs, not three copies.
    assert choose_attention(16384, width, dtype, CUDA, 2 * GIB) == ("pytorch" if fused else "sliced")
    assert choose_attention(16384, width, dtype, CUDA, 20 * GIB) == "pytorch"


def test_switched_off_kernels_are_not_counted_on(nvidia: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia()
    monkeypatch.setattr(torch.backends.cuda, "mem_efficient_sdp_enabled", lambda: False)
    assert choose_attention(16384, 512, BF16, CUDA, 2 * GIB) == "sliced"
    assert choose_attention(16384, 256, BF16, CUDA, 2 * GIB) == "pytorch"
    monkeypatch.setattr(torch.backends.cuda, "flash_sdp_enabled", lambda: False)
    assert choose_attention(16384, 256, BF16, CUDA, 2 * GIB) == "sliced"


def test_devices_without_fused_kernel_slice_when_three_copies_do_not_fit() -> None:
    scores = 4096 * 4096 * 4
    rest = 4 * 4096 * 512 * 4  # Result and float32 inputs.
    assert choose_attention(4096, 512, FP32, MPS, 3 * scores + rest) == "pytorch"
    assert choose_attention(4096, 512, FP32, MPS, 3 * scores + rest - 1) == "sliced"
    assert choose_attention(4096, 512, FP32, MPS, 3 * scores + rest, batch=2) == "sliced"
    assert choose_attention(4096, 512, FP16, MPS, 2 * scores) == "sliced"  # 16-bit scores are float32 all the same.


def test_scores_of_2_to_the_31_elements_are_never_written_however_much_memory_there_is() -> None:
    assert choose_attention(46340, 512, FP32, MPS, 2**60) == "pytorch"
    assert choose_attention(46341, 512, FP32, MPS, 2**60) == "sliced"
    assert choose_attention(32768, 512, FP32, MPS, 2**60, batch=2) == "sliced"
    assert choose_attention(46341, 512, FP32, CPU, 2**60) == "pytorch"


def test_xformers_comes_first_where_it_is_enabled(nvidia: Callable[..., None]) -> None:
    nvidia(xformers=True)
    assert choose_attention(16384, 512, BF16, CUDA, GIB) == "xformers"
    assert choose_attention(16384, 512, FP64, CUDA, GIB) == "sliced"
    assert choose_attention(16384, 512, BF16, CPU, GIB) == "pytorch"


def inputs(tokens: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    q, k, v = torch.randn(3, 2, tokens, 16, dtype=FP64, generator=generator)
    return q, k, v


class Surroundings:
    """Free memory that is told, and notes of what is called in which order."""

    def __init__(self, free_bytes: int) -> None:
        self.free_bytes = free_bytes
        self.calls: list[object] = []

    def attend(self, *qkv: Tensor, **table: Callable[..., Tensor]) -> Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention, "get_free_memory", lambda device: self.free_bytes)
            patch.setattr(attention, "soft_empty_cache", lambda: self.calls.append("empty"))
            return attend(*qkv, table={**ATTENTION, **table})

    def slices_that_fit_below(self, max_fitting_bytes: int) -> Callable[..., Tensor]:
        def sliced(q: Tensor, k: Tensor, v: Tensor, *, max_bytes: int) -> Tensor:
            self.calls.append(max_bytes)
            if max_bytes > max_fitting_bytes:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
            return sliced_attention(q, k, v, max_bytes=max_bytes)

        return sliced


def out_of_memory(*_: Tensor, **__: object) -> Tensor:
    raise RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)")


ONE_QUERY = 3 * 8 * 64  # Bytes of the scores of one query among 64 in float64.


@pytest.mark.parametrize("tokens", [1, 2, 63, 64])
def test_attend_equals_attention(tokens: int) -> None:
    qkv = inputs(tokens)
    strided = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in qkv]
    # float64, the same kernel: only the order of summing may differ.
    torch.testing.assert_close(attend(*qkv), pytorch_attention(*qkv), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(attend(*strided), pytorch_attention(*qkv), rtol=1e-12, atol=1e-12)


def test_attend_never_writes_the_scores_where_channels_are_not_dense() -> None:
    # As an image layer hands them over: (B, C, N) turned round. PyTorch alone would take its N x N kernel.
    q, k, v = torch.randn(3, 1, 16, 1024).transpose(2, 3)
    with LiveTensorMeter() as meter:
        attend(q, k, v)
    assert meter.peak_bytes < 1024 * 1024 * 4


def test_out_of_memory_goes_on_with_slices_of_a_quarter_halved_each_time() -> None:
    here = Surroundings(free_bytes=400 * ONE_QUERY)
    qkv = inputs()
    out = here.attend(*qkv, pytorch=out_of_memory, sliced=here.slices_that_fit_below(15 * ONE_QUERY))
    torch.testing.assert_close(out, pytorch_attention(*qkv), rtol=1e-12, atol=1e-12)  # float64, another order of sums.
    quarter = 100 * ONE_QUERY
    assert here.calls == ["empty", quarter, "empty", quarter // 2, "empty", quarter // 4, "empty", quarter // 8]


def test_the_smallest_slice_is_tried_and_its_error_reaches_the_caller() -> None:
    here = Surroundings(free_bytes=40 * ONE_QUERY)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        here.attend(*inputs(), pytorch=out_of_memory, sliced=here.slices_that_fit_below(0))
    tried = [call for call in here.calls if call != "empty"]
    assert tried == [10 * ONE_QUERY, 5 * ONE_QUERY, 5 * ONE_QUERY // 2, ONE_QUERY]


def test_no_free_memory_at_all_still_tries_one_query() -> None:
    here = Surroundings(free_bytes=0)
    qkv = inputs()
    out = here.attend(*qkv, pytorch=out_of_memory, sliced=here.slices_that_fit_below(ONE_QUERY))
    torch.testing.assert_close(out, pytorch_attention(*qkv), rtol=1e-12, atol=1e-12)  # float64, another order of sums.
    assert here.calls == [ONE_QUERY]


def test_slices_too_stay_below_2_to_the_31_elements() -> None:
    here = Surroundings(free_bytes=2**50)
    here.attend(*inputs(), pytorch=out_of_memory, sliced=here.slices_that_fit_below(2**60))
    # Three copies of float64 are counted for each element.
    assert here.calls == ["empty", 3 * 8 * (2**31 - 1)]


def test_the_failed_attempts_tensors_are_gone_before_the_cache_is_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[weakref.ref[Tensor]] = []

    def fails_holding_a_tensor(q: Tensor, *_: Tensor, **__: object) -> Tensor:
        scores = q.clone()
        kept.append(weakref.ref(scores))
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    alive: list[bool] = []
    monkeypatch.setattr(attention, "get_free_memory", lambda device: 10**9)
    monkeypatch.setattr(attention, "soft_empty_cache", lambda: alive.append(kept[-1]() is not None))
    attend(*inputs(), table={**ATTENTION, "pytorch": fails_holding_a_tensor})
    assert alive == [False]


def test_what_xformers_does_not_take_goes_to_the_next_back_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: Tensor, **__: object) -> Tensor:
        raise NotImplementedError("No operator found for `memory_efficient_attention_forward`")

    here = Surroundings(free_bytes=10**9)
    monkeypatch.setattr(attention, "_candidates", lambda *_: ["xformers", "pytorch", "sliced"])
    qkv = inputs()
    torch.testing.assert_close(
        here.attend(*qkv, xformers=unsupported, sliced=here.slices_that_fit_below(0)),
        pytorch_attention(*qkv),
        rtol=0,  # The very same kernel on the same data.
        atol=0,
    )


@pytest.mark.parametrize("name", ["pytorch", "sliced"])
def test_other_errors_reach_the_caller_at_once(name: str) -> None:
    def broken(*_: Tensor, **__: object) -> Tensor:
        raise RuntimeError("an illegal memory access was encountered")

    here = Surroundings(free_bytes=10**9 if name == "pytorch" else ONE_QUERY * 40)
    table = {"pytorch": out_of_memory, name: broken}
    with pytest.raises(RuntimeError, match="illegal memory access"):
        here.attend(*inputs(), **table)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_the_chosen_back_end_stays_within_its_estimate_on_cuda(dtype: torch.dtype) -> None:
    q, k, v = torch.randn(3, 1, 16384, 512, device="cuda").to(dtype)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    attend(q, k, v)
    # No N x N scores: one copy in this dtype would be 16384 * 16384 numbers.
    assert torch.cuda.max_memory_allocated() - before < 16384 * 16384 * dtype.itemsize // 2
