"""The meter of live tensor memory, against bytes counted by hand. All numbers are exact: storages have exact sizes."""

import gc

import pytest
import torch
from exact_vae.benchmarks.meter import LiveTensorMeter
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode


def test_new_tensors_count_until_they_are_gone() -> None:
    with LiveTensorMeter() as meter:
        assert meter.current_bytes == meter.peak_bytes == 0
        x = torch.empty(1000)
        assert meter.current_bytes == 4000
        y = x + 1
        assert meter.current_bytes == meter.peak_bytes == 8000
        del x
        assert meter.current_bytes == 4000  # At once, without another operation and without the garbage collector.
        z = y.to(torch.float64)
        assert meter.current_bytes == meter.peak_bytes == 12000
        del y
        assert meter.current_bytes == 8000
    del z
    assert meter.current_bytes == 0  # Still right after the block.
    assert meter.peak_bytes == 12000


def test_freeing_does_not_wait_for_the_garbage_collector() -> None:
    gc.disable()
    try:
        with LiveTensorMeter() as meter:
            for _ in range(10):
                torch.empty(1000).relu_()
        assert meter.peak_bytes == 4000
        assert meter.current_bytes == 0
    finally:
        gc.enable()


def test_views_share_one_storage_and_keep_it() -> None:
    with LiveTensorMeter() as meter:
        x = torch.empty(10, 100)
        views = [x[2:], x.t(), x.view(-1), x.detach(), *x.unbind(0), *x.split(3)]
        assert meter.current_bytes == meter.peak_bytes == 4000
        del x
        assert meter.current_bytes == 4000
        del views
        assert meter.current_bytes == 0


def test_storages_older_than_the_block_never_count() -> None:
    x = torch.zeros(1000)
    weight = nn.Parameter(torch.zeros(1000))
    with LiveTensorMeter() as meter:
        view, other = x[10:], x.view(10, 100)
        x.add_(1)
        torch.add(x, 1, out=x)
        weight.detach().mul_(2)
        assert meter.peak_bytes == 0
        copy = x.clone()
        del x, view, other
        assert meter.current_bytes == 4000
        del copy
    assert meter.current_bytes == 0


def test_in_place_operations_add_nothing() -> None:
    with LiveTensorMeter() as meter:
        x = torch.zeros(1000)
        out = torch.empty(1000)
        x.add_(1).mul_(2)
        torch.add(x, x, out=out)
        x[:10].fill_(5)
        torch.nn.functional.silu(x, inplace=True)
        assert meter.peak_bytes == 8000


def test_inputs_and_result_of_an_operation_live_together_at_the_peak() -> None:
    x = torch.zeros(1000)
    with LiveTensorMeter() as meter:
        x = x + 1  # The old x does not count; the new one replaces it.
        x = x + 1  # Here two live at once.
        x = x + 1
        assert meter.current_bytes == 4000
        assert meter.peak_bytes == 8000
        meter.reset_peak()
        assert meter.peak_bytes == 4000


def test_tuples_and_lists_of_results() -> None:
    x = torch.rand(1000)
    with LiveTensorMeter() as meter:
        values, indices = x.topk(10)
        assert meter.current_bytes == 10 * 4 + 10 * 8
        doubled = torch._foreach_mul([x, values], 2.0)  # One operation that returns a list.
        assert meter.current_bytes == 120 + 4000 + 40
        del doubled, values, indices
        assert meter.current_bytes == 0


def test_storages_made_from_python_lists_count() -> None:
    with LiveTensorMeter() as meter:
        x = torch.tensor([1.0, 2.0, 3.0])
        assert meter.current_bytes == x.untyped_storage().nbytes() == 12


def test_a_resized_storage_counts_its_new_size() -> None:
    with LiveTensorMeter() as meter:
        x = torch.empty(10)
        x.resize_(1000)
        assert meter.current_bytes == x.untyped_storage().nbytes() == 4000


def test_a_storage_at_a_freed_address_is_a_new_one() -> None:
    # Allocators hand addresses out again. If the meter mistook a new storage for an old one it would lose bytes.
    with LiveTensorMeter() as meter:
        for size in range(1, 200):
            x = torch.empty(size)
            assert meter.current_bytes == 4 * size
            del x


def test_tensors_kept_for_the_backward_pass_live() -> None:
    x = torch.rand(1000, requires_grad=True)
    with LiveTensorMeter() as meter:
        y = (x.exp() * 2).sum()  # exp keeps its result; the product dies after the sum.
        assert meter.current_bytes == 4000 + 4
        assert meter.peak_bytes == 8000 + 4
        y.backward()
        del y
        assert meter.current_bytes == 4000  # The gradient.


def test_only_the_asked_kind_of_device_counts() -> None:
    with LiveTensorMeter("meta") as meter:
        x = torch.empty(1000)
        y = torch.empty(10, device="meta")
        assert meter.current_bytes == 40
        del x, y


def test_a_module_costs_its_activations() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1))
    x = torch.rand(1, 3, 16, 16)
    with torch.inference_mode(), LiveTensorMeter() as meter:
        y = module(x)
    plane = 16 * 16 * 4
    # SiLU holds two planes of 8 channels at once; the last convolution one of 8 and one of 3.
    assert meter.peak_bytes == 16 * plane
    assert meter.current_bytes == y.nbytes == 3 * plane


NEEDS_CUDA = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
def test_fake_tensors_count_the_bytes_they_would_have(device: str) -> None:
    with FakeTensorMode(), LiveTensorMeter(device) as meter:
        x = torch.empty(50_000, 50_000, dtype=torch.bfloat16, device=device)
        assert meter.current_bytes == 5_000_000_000
        y = x[1:] * 2
        assert meter.peak_bytes == 5_000_000_000 + 49_999 * 50_000 * 2
        del x
        assert meter.current_bytes == y.numel() * 2 == 4_999_900_000
        y.add_(1)
        view = y.t()
        del y
        assert meter.current_bytes == 4_999_900_000
        del view
        assert meter.current_bytes == 0


def test_fake_and_real_runs_of_a_module_agree() -> None:
    def peak() -> tuple[int, int]:
        module = nn.Sequential(nn.Conv2d(3, 32, 3), nn.GroupNorm(32, 32), nn.SiLU(), nn.Upsample(scale_factor=2.0))
        x = torch.zeros(2, 3, 9, 9)
        with torch.no_grad(), LiveTensorMeter() as meter:
            y = module(x)
        return meter.peak_bytes, meter.current_bytes - y.untyped_storage().nbytes()

    with FakeTensorMode():
        fake = peak()
    assert fake == peak()
    assert fake[1] == 0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_agrees_with_the_cuda_allocator() -> None:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with LiveTensorMeter("cuda") as meter:
        x = torch.empty(2**20, device="cuda")
        y = x + 1
        del x
        z = y.to(torch.float64)
    # The sizes are multiples of the allocator's 512 bytes, so both count the same.
    assert meter.current_bytes == torch.cuda.memory_allocated() - before == 12 * 2**20
    assert meter.peak_bytes == torch.cuda.max_memory_allocated() - before
    del y, z
