"""Free and total memory per device kind. Back ends that are not here are imitated by their answers."""

import pytest
import torch
from exact_vae.model_management import get_free_memory, get_total_memory, memory, soft_empty_cache
from exact_vae.model_management.container import HostMemory

GIB = 1024**3


class DriverAnswers:
    """What torch.cuda and torch.xpu say for a device of 10 GiB, 2 GiB of it reserved and 0.5 GiB in use by tensors."""

    total_memory = 10 * GIB

    def memory_stats(self, device: torch.device) -> dict[str, int]:
        return {"reserved_bytes.all.current": 2 * GIB, "active_bytes.all.current": GIB // 2}

    def get_device_properties(self, device: torch.device) -> "DriverAnswers":
        return self

    def current_device(self) -> int:
        return 0


class DriverWithFreeBytes(DriverAnswers):
    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        return 3 * GIB, 10 * GIB


class DriverWithFraction(DriverWithFreeBytes):
    def get_per_process_memory_fraction(self, device: torch.device) -> float:
        return 0.25


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "host_memory", lambda: HostMemory(16 * GIB, 5 * GIB))


@pytest.mark.usefixtures("host")
def test_cpu_is_what_the_container_leaves() -> None:
    assert get_free_memory("cpu") == get_free_memory(torch.device("cpu")) == 5 * GIB
    assert get_total_memory("cpu") == 16 * GIB


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_cached_blocks_count_as_free(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(torch, kind, DriverWithFreeBytes())
    assert get_free_memory(kind) == 3 * GIB + 3 * GIB // 2
    assert get_total_memory(kind) == 10 * GIB


def test_without_the_drivers_number_the_reserved_bytes_are_subtracted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "xpu", DriverAnswers())
    assert get_free_memory("xpu:0") == 8 * GIB + 3 * GIB // 2


def test_a_memory_fraction_set_for_the_process_bounds_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    # A quarter of 10 GiB is 2.5 GiB; 2 GiB of it are reserved, 1.5 GiB of those unused.
    monkeypatch.setattr(torch, "cuda", DriverWithFraction())
    assert get_free_memory("cuda") == GIB // 2 + 3 * GIB // 2


@pytest.mark.usefixtures("host")
def test_mps_is_main_memory_within_what_metal_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: GIB)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 2 * GIB)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12 * GIB)
    assert get_free_memory("mps") == 6 * GIB  # 5 GiB available and 1 GiB cached by the allocator.
    assert get_total_memory("mps") == 12 * GIB
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 3 * GIB)
    assert get_free_memory("mps") == 2 * GIB
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: GIB // 2)
    assert get_free_memory("mps") == 0


def test_directml_is_a_constant() -> None:
    assert get_free_memory("privateuseone:0") == get_total_memory("privateuseone") == memory.DIRECTML_BYTES == GIB


@pytest.mark.usefixtures("host")
def test_no_device_means_the_compute_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "get_torch_device", lambda: torch.device("privateuseone", 0))
    assert get_free_memory() == get_total_memory() == memory.DIRECTML_BYTES


def test_emptying_the_cache_touches_only_back_ends_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for kind in ("cuda", "xpu", "mps"):
        monkeypatch.setattr(getattr(torch, kind), "empty_cache", lambda kind=kind: calls.append(kind))
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: calls.append("ipc"))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    soft_empty_cache()
    assert calls == []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    soft_empty_cache()
    assert calls == ["cuda", "ipc"]
    monkeypatch.setattr(torch.xpu, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    soft_empty_cache()
    assert calls[2:] == ["cuda", "ipc", "xpu", "mps"]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_freed_cuda_tensor_is_free_memory_before_and_after_emptying_the_cache() -> None:
    size = 256 * 1024**2
    soft_empty_cache()
    before = get_free_memory("cuda")
    tensor = torch.empty(size, dtype=torch.uint8, device="cuda")
    during = get_free_memory("cuda")
    del tensor
    after = get_free_memory("cuda")
    # Other programs may use the device meanwhile; a quarter of the tensor is room enough for them.
    assert before - during > 3 * size // 4
    assert after - during > 3 * size // 4
    soft_empty_cache()
    assert get_free_memory("cuda") - during > 3 * size // 4
    assert before < get_total_memory("cuda")
