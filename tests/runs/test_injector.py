"""The injector of allocation failures, against allocations counted by hand. All numbers are exact."""

import gc
from collections.abc import Callable

import pytest
import torch
from exact_vae.benchmarks.meter import LiveTensorMeter
from exact_vae.model_management.oom import OOM_EXCEPTION, is_oom
from exact_vae.tests.injector import AllocationFailures
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode


def four_allocations() -> Tensor:
    """4000, 4000, 8000 and 4 bytes, all alive at the end; views and in-place operations bring nothing."""
    a = torch.zeros(1000)
    b = a + 1
    a.add_(1)
    c = torch.cat([a.view(10, 100).t().reshape(-1)[:0], a, b])
    assert a[1:].shape == (999,)
    return c.sum() + torch.zeros(0).numel()


def counted(work: Callable[[], object]) -> int:
    with AllocationFailures() as failures:
        work()
    return failures.count


def test_only_operations_that_bring_a_new_storage_count() -> None:
    x = torch.zeros(1000)
    with AllocationFailures() as failures:
        x.add_(1)
        x.view(10, 100).t()
        torch.add(x, 1, out=x)
        assert failures.count == 0
        y = x + 1
        assert failures.count == 1
        x.topk(3)  # Two storages, one operation.
        assert failures.count == 2
        torch.tensor([1.0, 2.0])
        assert failures.count == 3
        y.relu_()
    assert (failures.count, failures.failed) == (3, 0)


@pytest.mark.parametrize("once", [True, False])
def test_every_kth_allocation_can_be_failed(once: bool) -> None:
    total = counted(four_allocations)
    assert total > 4
    for k in range(1, total + 1):
        with (
            AllocationFailures(fail_at=k, once=once) as failures,
            pytest.raises(OOM_EXCEPTION, match=f"injected.*allocation {k}$") as caught,
        ):
            four_allocations()
        assert is_oom(caught.value)
        assert (failures.count, failures.failed) == (k, 1)
    with AllocationFailures(fail_at=total + 1, once=once) as failures:
        four_allocations()
    assert failures.failed == 0


def test_once_lets_the_second_try_through_and_from_then_on_does_not() -> None:
    with AllocationFailures(fail_at=2) as failures:
        x = torch.zeros(10)
        with pytest.raises(OOM_EXCEPTION):
            x + 1
        x + 1
    assert (failures.count, failures.failed) == (3, 1)
    with AllocationFailures(fail_at=2, once=False) as failures:
        x = torch.zeros(10)
        for _ in range(3):
            with pytest.raises(OOM_EXCEPTION):
                x + 1
        x.add_(1)  # Needs no memory.
    assert (failures.count, failures.failed) == (4, 3)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_limit_is_on_live_bytes(device: str) -> None:
    with AllocationFailures(device, limit_bytes=8000) as failures:
        x = torch.zeros(1000, device=device)
        y = x + 1  # Exactly the limit.
        with pytest.raises(OOM_EXCEPTION, match="4 bytes, above the limit of 8000 bytes"):
            torch.zeros(1, device=device)
        assert failures.current_bytes == failures.peak_bytes == 8000  # What failed is gone and never counted.
        del y
        z = torch.zeros(500, device=device)
        assert failures.current_bytes == x.nbytes + z.nbytes == 6000
    assert (failures.count, failures.failed) == (4, 1)


def test_the_failed_result_is_freed_at_once_and_the_inputs_with_the_error() -> None:
    x = torch.zeros(1000)
    gc.disable()  # A cycle would keep the storages until the collector runs.
    try:
        with LiveTensorMeter() as meter:
            with AllocationFailures(fail_at=1), pytest.raises(OOM_EXCEPTION) as caught:
                x.exp()
            assert caught.value.__traceback__ is not None  # The error is held, and nothing else.
            assert (meter.peak_bytes, meter.current_bytes) == (4000, 0)
            with AllocationFailures(fail_at=2), pytest.raises(OOM_EXCEPTION) as caught:
                torch.zeros(1000).exp()  # The input has no other owner.
            assert (meter.peak_bytes, meter.current_bytes) == (8000, 4000)
            del caught
            assert meter.current_bytes == 0
    finally:
        gc.enable()


def test_only_the_asked_kind_of_device_is_watched() -> None:
    with AllocationFailures("meta", fail_at=1) as failures:
        x = torch.zeros(1000)
        assert failures.count == 0
        with pytest.raises(OOM_EXCEPTION):
            x.to("meta")
    with AllocationFailures("cpu", limit_bytes=0) as failures:
        assert torch.zeros(1000, device="meta").shape == (1000,)
    assert failures.count == 0


def test_storages_older_than_the_block_do_not_count_against_the_limit() -> None:
    x = torch.zeros(10_000)
    with AllocationFailures(limit_bytes=400) as failures:
        assert x[:100].clone().nbytes == 400
    assert failures.failed == 0


def test_a_module_fails_where_its_activations_pass_the_limit() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.SiLU(), nn.Conv2d(8, 3, 1))
    x = torch.rand(1, 3, 16, 16)
    plane = 16 * 16 * 4
    with torch.inference_mode():
        for limit, fits in ((16 * plane, True), (16 * plane - 1, False)):
            with AllocationFailures(limit_bytes=limit) as failures:
                if fits:
                    module(x)
                else:
                    with pytest.raises(OOM_EXCEPTION):
                        module(x)
            assert failures.failed == (not fits)


def test_fake_tensors_fail_by_the_bytes_they_would_have() -> None:
    with FakeTensorMode(), AllocationFailures(limit_bytes=10**10) as failures:
        x = torch.empty(50_000, 50_000, dtype=torch.bfloat16)
        with pytest.raises(OOM_EXCEPTION):
            x.float()
        assert failures.current_bytes == 5 * 10**9
    assert (failures.count, failures.failed) == (2, 1)


@pytest.mark.parametrize(
    ("options", "text"), [({"fail_at": 0}, "from 1, got 0"), ({"limit_bytes": -1}, "at least 0, got -1")]
)
def test_impossible_numbers_are_refused(options: dict[str, int], text: str) -> None:
    with pytest.raises(ValueError, match=text) as caught:
        AllocationFailures(**options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
