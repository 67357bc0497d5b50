"""How much memory a plan may use where nobody says: what is free, less a reserve for what no plan can see."""

from __future__ import annotations

from collections.abc import Callable

import torch

from . import memory

AMPLE = 2**62
"""A budget that everything fits into."""
RESERVE_SHARE = 0.1
RESERVE_BYTES = 256 * 1024**2
"""Kept free on the device: a convolution library's workspace, fragmentation, other programs."""
HOST_SHARE = 0.5
"""Of the free main memory, for strips that wait there; pinned memory beyond half of it is refused by some systems."""


def device_reserve(free_bytes: int) -> int:
    """Bytes to leave free: a tenth, and a quarter GiB unless that is most of what there is."""
    return max(int(RESERVE_SHARE * free_bytes), min(RESERVE_BYTES, free_bytes // 4))


def budgets(
    device: torch.device, limit: int | None, get_free_memory: Callable[[torch.device], int] | None = None
) -> tuple[int, int]:
    """Bytes for a plan on the device and in host memory. `limit`: what the user allows on the device, or None.

    On a CPU the device is the main memory: strips have nowhere else to wait.
    """
    get_free_memory = get_free_memory or memory.get_free_memory
    free_bytes = get_free_memory(device)
    device_budget = max(1, free_bytes - device_reserve(free_bytes)) if limit is None else limit
    if device.type == "cpu":
        return device_budget, 0
    return device_budget, int(HOST_SHARE * get_free_memory(torch.device("cpu")))
