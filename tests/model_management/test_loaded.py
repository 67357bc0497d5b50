"""Which models are on a device and which must leave.

The compute device is the CPU with made-up free memory, and models leave to the meta device: moves are real there,
although data does not survive them.
"""

import gc
import weakref

import pytest
import torch
from exact_vae.model_management import free_memory, load_model, unload_model
from exact_vae.model_management.loaded import LoadedModels
from torch import nn

CPU, META = torch.device("cpu"), torch.device("meta")
SIZE = 4000  # Bytes of each model.


def model(parts: int = 1) -> nn.Module:
    """A model of `parts` * SIZE bytes."""
    return nn.ModuleList(nn.Linear(999, 1) for _ in range(parts))


def where(*models: nn.Module) -> list[str]:
    return [next(m.parameters()).device.type for m in models]


class Device:
    """A device of `total_bytes`: what the registry's models do not use on the CPU is free."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.emptied = 0
        self.models = LoadedModels(META, self.free_bytes, self.empty)

    def free_bytes(self, device: torch.device) -> int:
        assert device == CPU
        loaded = [p for m in self.models.current() for p in m.parameters() if p.device == device]
        return self.total_bytes - sum(p.nbytes for p in loaded)

    def empty(self) -> None:
        self.emptied += 1


def fill(device: Device, count: int) -> list[nn.Module]:
    models = [model() for _ in range(count)]
    for m in models:
        device.models.load_model(m, CPU)
    return models


def test_the_model_of_these_tests_has_the_size_they_count_with() -> None:
    assert sum(p.nbytes for p in model().parameters()) == SIZE


def test_the_one_used_longest_ago_leaves_first() -> None:
    device = Device(3 * SIZE)
    a, b, c = fill(device, 3)
    assert device.models.current() == [a, b, c]
    device.models.load_model(a, CPU)  # Used again: now b is the oldest.
    assert device.models.current() == [b, c, a]
    freed = device.models.free_memory(SIZE, CPU)
    assert freed == SIZE
    assert where(a, b, c) == ["cpu", "meta", "cpu"]
    assert device.models.current() == [c, a]


def test_nobody_leaves_while_there_is_room() -> None:
    device = Device(10 * SIZE)
    models = fill(device, 3)
    assert device.models.free_memory(7 * SIZE, CPU) == 0
    assert where(*models) == ["cpu"] * 3
    assert device.emptied == 0


def test_only_as_many_leave_as_are_needed_and_the_cache_is_emptied() -> None:
    device = Device(10 * SIZE)
    models = fill(device, 4)
    assert device.models.free_memory(7 * SIZE + 1, CPU) == 2 * SIZE
    assert where(*models) == ["meta", "meta", "cpu", "cpu"]
    assert device.emptied == 2


def test_memory_required_is_wanted_on_top_of_the_model() -> None:
    device = Device(5 * SIZE)
    a, b = fill(device, 2)
    device.models.load_model(b, CPU, memory_required=3 * SIZE)  # b is there already: a may stay.
    assert where(a, b) == ["cpu", "cpu"]
    device.models.load_model(b, CPU, memory_required=3 * SIZE + 1)
    assert where(a, b) == ["meta", "cpu"]


def test_the_weights_still_to_move_are_wanted_too() -> None:
    # From meta nothing can be moved back, so this newcomer only pretends to.
    class Newcomer(nn.Linear):
        def to(self, *args: object, **kwargs: object) -> nn.Module:
            return self.to_empty(device=CPU)

    device = Device(3 * SIZE)
    a, b = fill(device, 2)
    newcomer = Newcomer(999, 1, device=META)
    device.models.load_model(newcomer, CPU, memory_required=SIZE)
    assert where(a, b, newcomer) == ["meta", "cpu", "cpu"]
    assert device.models.current() == [b, newcomer]


def test_the_model_being_loaded_and_kept_ones_stay_even_if_it_is_not_enough() -> None:
    device = Device(3 * SIZE)
    a, b, c = fill(device, 3)
    device.models.load_model(a, CPU, memory_required=100 * SIZE)
    assert where(a, b, c) == ["cpu", "meta", "meta"]
    assert device.models.free_memory(100 * SIZE, CPU, keep=[a]) == 0
    assert where(a) == ["cpu"]


def test_keep_is_passed_over_in_the_order_of_use() -> None:
    device = Device(3 * SIZE)
    a, b, c = fill(device, 3)
    assert device.models.free_memory(SIZE, CPU, keep=[a]) == SIZE
    assert where(a, b, c) == ["cpu", "meta", "cpu"]


def test_models_on_another_device_are_left_alone() -> None:
    device = Device(2 * SIZE)
    a, b = fill(device, 2)
    assert LoadedModels(CPU, lambda device: 0).free_memory(SIZE, torch.device("xpu", 0)) == 0
    other = LoadedModels(torch.device("xpu", 0), lambda device: 0)
    other.load_model(a, CPU)
    assert other.free_memory(SIZE, META) == 0
    assert where(a, b) == ["cpu", "cpu"]


def test_unloading() -> None:
    device = Device(9 * SIZE)
    a, b = fill(device, 2)
    device.models.unload_model(a)
    assert where(a, b) == ["meta", "cpu"]
    assert device.models.current() == [b]
    stranger = model()
    device.models.unload_model(stranger)
    assert where(stranger) == ["meta"]
    emptied = device.emptied
    device.models.unload_model(stranger)  # Nothing to move, so no cached blocks to give back.
    assert device.emptied == emptied == 2


def test_nothing_is_kept_alive_and_the_dead_are_forgotten() -> None:
    device = Device(9 * SIZE)
    a, b, c = fill(device, 3)
    dead = weakref.ref(b)
    del b
    gc.collect()
    assert dead() is None
    assert device.models.current() == [a, c]
    assert device.models.free_memory(8 * SIZE, CPU) == SIZE
    assert where(a, c) == ["meta", "cpu"]


def test_what_is_on_the_offload_device_is_moved_but_never_counted() -> None:
    models = LoadedModels(CPU, lambda device: 0)
    a = model()
    models.load_model(a, CPU)
    assert models.current() == []
    assert models.free_memory(SIZE, CPU) == 0
    assert where(a) == ["cpu"]


def test_running_out_during_the_move_empties_the_device_and_tries_once_more() -> None:
    class Reluctant(nn.Linear):
        attempts = 0

        def to(self, *args: object, **kwargs: object) -> nn.Module:
            Reluctant.attempts += 1
            if Reluctant.attempts == 1:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
            return self.to_empty(device=CPU)

    device = Device(100 * SIZE)
    a, b = fill(device, 2)
    newcomer = Reluctant(999, 1, device=META)
    device.models.load_model(newcomer, CPU)
    assert Reluctant.attempts == 2
    assert where(a, b, newcomer) == ["meta", "meta", "cpu"]


def test_other_errors_of_a_move_reach_the_caller_at_once() -> None:
    class Broken(nn.Linear):
        def to(self, *args: object, **kwargs: object) -> nn.Module:
            raise RuntimeError("illegal memory access")

    device = Device(100 * SIZE)
    (a,) = fill(device, 1)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        device.models.load_model(Broken(999, 1, device=META), CPU)
    assert where(a) == ["cpu"]


def test_shared_weights_are_counted_once() -> None:
    device = Device(9 * SIZE)
    part = nn.Linear(999, 1)
    twice = nn.ModuleList([part, part])
    device.models.load_model(twice, CPU)
    assert device.models.free_memory(100 * SIZE, CPU) == SIZE


def test_a_model_moved_under_inference_mode_can_still_be_trained() -> None:
    a = model()
    models = LoadedModels(META, lambda device: 0, lambda: None)
    with torch.inference_mode():
        models.unload_model(a)
    assert where(a) == ["meta"]
    assert not any(p.is_inference() for p in a.parameters())


def test_a_model_made_under_inference_mode_runs_after_the_move() -> None:
    with torch.inference_mode():
        a = model()
        LoadedModels(META, lambda device: 0, lambda: None).unload_model(a)
        assert where(a) == ["meta"]
        nn.functional.linear(torch.ones(1, next(a.parameters()).shape[-1], device=META), next(a.parameters()))
        assert all(p.is_inference() for p in a.parameters())


def test_the_registry_of_the_process_offloads_to_main_memory() -> None:
    a = model()
    before = [p.clone() for p in a.parameters()]
    load_model(a, CPU, memory_required=1)
    assert free_memory(2**62, CPU) == 0
    unload_model(a)
    # Nothing may have been computed on the weights, so not a bit differs.
    torch.testing.assert_close(list(a.parameters()), before, rtol=0, atol=0)
    assert where(a) == ["cpu"]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_there_and_back_on_cuda() -> None:
    a, b = model(), model()
    before = [p.clone() for p in a.parameters()]
    models = LoadedModels()
    device = torch.device("cuda")
    models.load_model(a, device)
    models.load_model(b, device)
    assert where(a, b) == ["cuda", "cuda"]
    assert models.free_memory(2**62, device, keep=[b]) == SIZE
    assert where(a, b) == ["cpu", "cuda"]
    torch.testing.assert_close(list(a.parameters()), before, rtol=0, atol=0)  # A move changes no bit.
