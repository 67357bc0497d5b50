"""How much memory a plan may use where nobody says: what is free, less a reserve for what no plan can see."""

from __future__ import annotations

from collections.abc import Callable

import torch

from . import memory

RESERVE_SHARE = 0.1
RESERVE_BYTES = 256 * 1024**2
"""Kept free on the device: a convolution library's workspace, fragmentation, other programs."""
HOST_SHARE = 0.5
"""Of the free main memory, for strips that wait there; pinned memory beyond half of it is refused by some systems."""


def device_reserve(free_bytes: int) -> int:
    """Bytes to leave free: a tenth, and a quarter GiB unless that is most of what there is."""
    return max(int(RESERVE_SHARE * free_bytes), min(RESERVE_BYTES, free_bytes // 4))


def is_main_memory(device: torch.device) -> bool:
    """Whether the device's memory is the main memory: strips then have nowhere else to wait."""
    return device.type == "cpu"


def budgets(
    device: torch.device,
    budget: int | None,
    get_free_memory: Callable[[torch.device], int] | None = None,
    sharing: int = 1,
) -> tuple[int, int]:
    """Bytes for a plan on the device and in main memory: the one rule of runs, nodes and the command line.

    Args:    budget: what the user allows on the device, None for what is free. sharing: processes in this main memory.
    """

    def free(place: torch.device) -> int:
        found = (get_free_memory or memory.get_free_memory)(place)
        return found // sharing if place.type == "cpu" else found

    if budget is None:
        free_bytes = free(device)
        budget = max(1, free_bytes - device_reserve(free_bytes))
    return budget, 0 if is_main_memory(device) else int(HOST_SHARE * free(torch.device("cpu")))
