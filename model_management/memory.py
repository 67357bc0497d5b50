"""Free and total memory of a device in bytes, and giving cached blocks back to it.

| device kind          | total                                  | free                                             |
|----------------------|----------------------------------------|--------------------------------------------------|
| cuda (also AMD), xpu | what the driver says                   | the driver's free bytes + blocks PyTorch caches  |
| mps                  | main memory, at most what Metal allows | available main memory, within what Metal allows  |
| privateuseone        | DIRECTML_BYTES                         | DIRECTML_BYTES                                   |
| cpu and the rest     | main memory within the container       | available main memory within the container       |
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch

from .container import host_memory
from .devices import as_device, get_torch_device

# DirectML has no call that tells how much memory is free. Any card it runs on has this much left for one layer's work;
# a plan made for it is slow on a large card and still correct.
DIRECTML_BYTES = 1024**3

_DRIVER_KINDS = ("cuda", "xpu")


@overload
def get_free_memory(device: torch.device | str | None = None, torch_free_too: Literal[False] = False) -> int: ...
@overload
def get_free_memory(device: torch.device | str | None = None, *, torch_free_too: Literal[True]) -> tuple[int, int]: ...
@overload
def get_free_memory(device: torch.device | str | None, torch_free_too: Literal[True]) -> tuple[int, int]: ...


def get_free_memory(device: torch.device | str | None = None, torch_free_too: bool = False) -> int | tuple[int, int]:
    """Bytes that can be allocated on `device` now; the compute device when it is None.

    Blocks that PyTorch's allocator holds but no tensor uses count as free: it hands them out again first. With
    `torch_free_too` (free bytes, those of them in such blocks); where no allocator keeps blocks, both are all that is
    free, as ComfyUI has it.
    """
    device = get_torch_device() if device is None else as_device(device)
    if device.type in _DRIVER_KINDS:
        free_bytes, cached_bytes = _driver_bytes(getattr(torch, device.type), device)
    elif device.type == "privateuseone":
        free_bytes = cached_bytes = DIRECTML_BYTES
    elif device.type == "mps":
        available_bytes, used_bytes = host_memory().available_bytes, torch.mps.current_allocated_memory()
        cached_bytes = max(0, torch.mps.driver_allocated_memory() - used_bytes)
        limit_bytes = torch.mps.recommended_max_memory() - used_bytes
        free_bytes = max(0, min(available_bytes + cached_bytes, limit_bytes))
    else:
        free_bytes = cached_bytes = host_memory().available_bytes
    return (free_bytes, min(cached_bytes, free_bytes)) if torch_free_too else free_bytes


def get_total_memory(device: torch.device | str | None = None) -> int:
    """Bytes that `device` has in all, used or not; the compute device when it is None."""
    device = get_torch_device() if device is None else as_device(device)
    if device.type in _DRIVER_KINDS:
        return int(getattr(torch, device.type).get_device_properties(device).total_memory)
    if device.type == "privateuseone":
        return DIRECTML_BYTES
    total_bytes = host_memory().total_bytes
    return min(total_bytes, torch.mps.recommended_max_memory()) if device.type == "mps" else total_bytes


def soft_empty_cache(force: bool = False) -> None:
    """Give cached but unused blocks back to every device that is in use. Starts no back end and collects no garbage.

    `force` is ComfyUI's, which spares some cards without it; here it changes nothing.
    """
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.ipc_collect()
    if torch.xpu.is_initialized():
        torch.xpu.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def _driver_bytes(backend: Any, device: torch.device) -> tuple[int, int]:
    """Free bytes, and those of them in blocks that PyTorch's allocator holds and no tensor uses.

    By torch.cuda or torch.xpu, which name the same things alike; older torch.xpu lacks some of them.
    """
    stats = backend.memory_stats(device)
    reserved_bytes = stats.get("reserved_bytes.all.current", 0)
    cached_bytes = max(0, reserved_bytes - stats.get("active_bytes.all.current", 0))
    total_bytes = int(backend.get_device_properties(device).total_memory)
    if hasattr(backend, "mem_get_info"):
        driver_free_bytes = int(backend.mem_get_info(device)[0])
    else:
        # Without the driver's number this process is taken to be alone on the device.
        driver_free_bytes = total_bytes - reserved_bytes
    if hasattr(backend, "get_per_process_memory_fraction"):
        allowed_bytes = int(total_bytes * backend.get_per_process_memory_fraction(device))
        driver_free_bytes = min(driver_free_bytes, allowed_bytes - reserved_bytes)
    return max(0, driver_free_bytes) + cached_bytes, cached_bytes
