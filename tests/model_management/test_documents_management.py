"""Names of ComfyUI's model_management that the documents call, with their arguments."""

import inspect
from types import SimpleNamespace
from typing import Any

import exact_vae.model_management as management
import pytest
import torch
from exact_vae.model_management import loaded, memory
from exact_vae.model_management.container import HostMemory
from exact_vae.nodes.tiled import VAEDecodeTiled, VAEEncodeTiled
from exact_vae.tests.model_management.test_loaded import CPU, SIZE, Device, model, where
from exact_vae.tests.model_management.test_memory import GIB, DriverWithFraction, DriverWithFreeBytes
from torch import nn

META = torch.device("meta")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Device:
    """The process's registry on a device of two models."""
    device = Device(2 * SIZE)
    monkeypatch.setattr(loaded, "_PROCESS_MODELS", device.models)
    monkeypatch.setattr(loaded, "vae_device", lambda: CPU)
    return device


def test_all_models_leave(registry: Device) -> None:
    a, b = model(), model()
    management.load_model(a, CPU)
    management.load_model(b, CPU)
    assert where(a, b) == ["cpu", "cpu"]
    management.unload_all_models()
    assert where(a, b) == ["meta", "meta"]
    assert registry.models.current() == []
    management.unload_all_models()


def test_models_are_loaded_together_and_others_leave(registry: Device) -> None:
    other, a = model(), model()
    vae = SimpleNamespace(first_stage_model=model(), device=CPU)
    management.load_model(other, CPU)
    management.load_models_gpu([a, vae], memory_required=SIZE)
    assert where(other, a, vae.first_stage_model) == ["meta", "cpu", "cpu"]
    assert registry.models.current() == [a, vae.first_stage_model]


def test_models_of_one_call_do_not_push_each_other_out(registry: Device) -> None:
    a, b, c = model(), model(), model()
    management.load_models_gpu([a, b, c], memory_required=SIZE)  # there is room for two; a GPU would say it is full
    assert where(a, b, c) == ["cpu", "cpu", "cpu"]


def test_a_vae_goes_to_its_own_device(registry: Device) -> None:
    vae = SimpleNamespace(first_stage_model=model(), device=META)
    management.load_models_gpu([vae])
    assert where(vae.first_stage_model) == ["meta"]


@pytest.mark.parametrize("wrong", ["model", None, SimpleNamespace(model=nn.Identity())])
def test_what_is_no_model_is_refused_before_anything_moves(registry: Device, wrong: Any) -> None:
    a = model()
    management.load_models_gpu([a])
    with pytest.raises(TypeError, match="load_models_gpu: expected modules or VAEs, got"):
        management.load_models_gpu([model(), wrong])
    assert registry.models.current() == [a]


@pytest.mark.parametrize(("driver", "free"), [(DriverWithFreeBytes, 3 * GIB), (DriverWithFraction, GIB // 2)])
def test_free_memory_tells_what_pytorch_holds(monkeypatch: pytest.MonkeyPatch, driver: type, free: int) -> None:
    monkeypatch.setattr(torch, "cuda", driver())
    held = 3 * GIB // 2
    assert management.get_free_memory("cuda", torch_free_too=True) == (free + held, held)
    assert management.get_free_memory("cuda", True) == (free + held, held)
    assert management.get_free_memory("cuda", False) == management.get_free_memory("cuda") == free + held


def test_free_memory_without_an_allocator_that_holds_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "host_memory", lambda: HostMemory(16 * GIB, 5 * GIB))
    assert management.get_free_memory("cpu", torch_free_too=True) == (5 * GIB, 5 * GIB)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 2 * GIB)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 3 * GIB)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12 * GIB)
    assert management.get_free_memory("mps", torch_free_too=True) == (6 * GIB, GIB)


def test_the_cache_is_emptied_with_and_without_force(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[str] = []
    fake = SimpleNamespace(
        is_initialized=lambda: True, empty_cache=lambda: emptied.append("cuda"), ipc_collect=lambda: None
    )
    monkeypatch.setattr(torch, "cuda", fake)
    management.soft_empty_cache()
    management.soft_empty_cache(True)
    management.soft_empty_cache(force=False)
    assert emptied == ["cuda"] * 3


def test_tile_sizes_step_as_the_cores() -> None:
    steps = {kind: kind.INPUT_TYPES()["required"]["tile_size"][1] for kind in (VAEDecodeTiled, VAEEncodeTiled)}
    assert (steps[VAEDecodeTiled]["step"], steps[VAEEncodeTiled]["step"]) == (32, 64)
    for options in steps.values():
        assert (options["min"], options["max"], options["default"]) == (64, 4096, 512)
    for kind, method in ((VAEDecodeTiled, "decode"), (VAEEncodeTiled, "encode")):
        assert (
            list(kind.INPUT_TYPES()["required"])[2:] == list(inspect.signature(getattr(kind, method)).parameters)[3:7]
        )
