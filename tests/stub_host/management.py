"""The imitated comfy.model_management and comfy.model_prefetch: one device, the CPU, with the memory a test gives."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch

from .host import GIB, StubHost

CPU = torch.device("cpu")


def make_management(host: StubHost) -> ModuleType:
    """The names that v0.3.64 and newer versions share, and the newer ones where the flavour has them."""
    module: Any = ModuleType("comfy.model_management")
    module.OOM_EXCEPTION = torch.OutOfMemoryError if hasattr(torch, "OutOfMemoryError") else torch.cuda.OutOfMemoryError
    base = BaseException if host.new else Exception
    module.InterruptProcessingException = type("InterruptProcessingException", (base,), {})
    module.current_loaded_models = []
    for name in ("get_torch_device", "vae_device", "vae_offload_device", "intermediate_device", "unet_offload_device"):
        setattr(module, name, lambda: CPU)
    for name in ("is_amd", "is_nvidia", "is_intel_xpu", "is_directml_enabled", "xformers_enabled_vae", "mps_mode"):
        setattr(module, name, lambda: False)
    module.cpu_mode = lambda: True
    module.pytorch_attention_enabled_vae = lambda: True
    module.is_device_mps = module.should_use_fp16 = module.should_use_bf16 = lambda *_, **__: False
    module.device_supports_non_blocking = lambda device: False
    module.dtype_size = lambda dtype: dtype.itemsize
    module.module_size = lambda model: sum(t.numel() * t.element_size() for t in model.state_dict().values())
    module.vae_dtype = lambda device=None, allowed_dtypes=(): torch.float32
    module.get_total_memory = lambda dev=None, torch_total_too=False: 16 * GIB
    module.cast_to_device = lambda tensor, device, dtype, copy=False: tensor.to(device, dtype, copy=copy)
    _add_memory(module, host)
    _add_interrupt(module, host)
    if host.new:
        _add_new(module, host)
    return module


def _add_memory(module: Any, host: StubHost) -> None:
    def get_free_memory(dev: Any = None, torch_free_too: bool = False) -> Any:
        return (host.free_bytes, 0) if torch_free_too else host.free_bytes

    def free_memory(memory_required: float, device: Any, keep_loaded: Any = (), **_: Any) -> list[Any]:
        if memory_required > host.free_bytes and host.evictable_bytes:
            host.evictions.append(int(memory_required))
            host.free_bytes += host.evictable_bytes
            host.evictable_bytes = 0
        return []

    def load_models_gpu(
        models: Any,
        memory_required: float = 0,
        force_patch_weights: bool = False,
        minimum_memory_required: float | None = None,
        force_full_load: bool = False,
    ) -> None:
        models = list(models)
        host.memory_required.append(int(memory_required))
        weights = sum(patcher.model_size() - patcher.loaded_size() for patcher in models)
        free_memory(weights * 1.1 + memory_required, CPU)
        for patcher in models:
            patcher.load()
            module.current_loaded_models.append(patcher)

    def soft_empty_cache(force: bool = False) -> None:
        host.cache_emptied += 1

    def unload_all_models() -> None:
        free_memory(1e30, CPU)
        module.current_loaded_models.clear()

    module.get_free_memory, module.free_memory = get_free_memory, free_memory
    module.load_models_gpu, module.load_model_gpu = load_models_gpu, lambda patcher: load_models_gpu([patcher])
    module.soft_empty_cache, module.unload_all_models = soft_empty_cache, unload_all_models
    module.extra_reserved_memory = lambda: 400 * 2**20
    module.minimum_inference_memory = lambda: int(1.2 * GIB)


def _add_interrupt(module: Any, host: StubHost) -> None:
    module.interrupt_processing = False

    def throw_exception_if_processing_interrupted() -> None:
        host.interrupt_checks += 1
        if host.interrupt_checks == host.interrupt_at:
            module.interrupt_processing = True
        if module.interrupt_processing:
            module.interrupt_processing = False
            raise module.InterruptProcessingException

    def interrupt_current_processing(value: bool = True) -> None:
        module.interrupt_processing = value

    module.throw_exception_if_processing_interrupted = throw_exception_if_processing_interrupted
    module.interrupt_current_processing = interrupt_current_processing
    module.processing_interrupted = lambda: module.interrupt_processing


def _add_new(module: Any, host: StubHost) -> None:
    def is_oom(error: BaseException) -> bool:
        return isinstance(error, module.OOM_EXCEPTION)

    def raise_non_oom(error: BaseException) -> None:
        if not is_oom(error):
            raise error

    module.is_oom, module.raise_non_oom = is_oom, raise_non_oom
    module.discard_cuda_async_error = module.synchronize = lambda: None
    module.intermediate_dtype = lambda: torch.float16 if host.fp16_intermediates else torch.float32
    module.cuda_device_context = lambda device: counted(host, "cuda_device_context")
    module.archive_model_dtypes = lambda model: None
    module.get_all_torch_devices = lambda: [CPU]


@contextlib.contextmanager
def counted(host: StubHost, name: str) -> Iterator[None]:
    """A context that only counts how often it is entered."""
    host.entered[name] += 1
    yield


def make_prefetch(host: StubHost) -> ModuleType:
    """comfy.model_prefetch, which only newer versions have."""
    module: Any = ModuleType("comfy.model_prefetch")
    module.pause_malloc_graph = lambda: counted(host, "pause_malloc_graph")
    return module
