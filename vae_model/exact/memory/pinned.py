"""Host memory that a GPU copies from and to at full speed: pinned in slabs for one run, and given back behind it.

PyTorch's own pinned memory is slow to come, rounded up to powers of two, and kept for good. Here a slab's pages are
made by all threads at once and then registered with the driver.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FIRST_SLAB_BYTES, SLAB_BYTES = 16 * 2**20, 256 * 2**20
"""Slabs double in size from the first to the largest, so that little is pinned in vain."""
_ALIGNMENT = 4096


class PinnedSlabs:
    """Pinned memory in pieces that are given back all at once: to be used again, or to the system."""

    def __init__(self) -> None:
        self._slabs: list[Tensor] = []
        self._registered: list[Tensor] = []
        self._slab, self._used = 0, 0
        """The slab in use, and how much of it is."""

    def __call__(self, size: int) -> Tensor:
        """A piece of `size` bytes: flat, uint8."""
        aligned = -(-size // _ALIGNMENT) * _ALIGNMENT
        while self._slab < len(self._slabs) and self._used + aligned > self._slabs[self._slab].numel():
            self._slab, self._used = self._slab + 1, 0
        if self._slab == len(self._slabs):
            usual = min(FIRST_SLAB_BYTES << len(self._slabs), SLAB_BYTES)
            self._slabs.append(self._new(max(aligned, usual)))
        piece = self._slabs[self._slab][self._used : self._used + size]
        self._used += aligned
        return piece

    def _new(self, size: int) -> Tensor:
        slab = torch.empty(size, dtype=torch.uint8)
        slab.view(torch.int64).zero_()  # by all threads; the driver would make the pages one after the other
        if _register(slab):
            self._registered.append(slab)
            return slab
        del slab
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def rewind(self) -> None:
        """All pieces are free to be given out again. No copy may be under way any more."""
        self._slab, self._used = 0, 0

    def close(self) -> None:
        """Give everything back to the system. No copy may be under way any more."""
        for slab in self._registered:
            _runtime().cudaHostUnregister(slab.data_ptr())
        self._registered.clear()
        self._slabs.clear()
        self.rewind()


def _runtime() -> Any:
    return torch.cuda.cudart()


def _register(slab: Tensor) -> bool:
    """Pin memory that is there already; False where the driver does not."""
    try:
        status = _runtime().cudaHostRegister(slab.data_ptr(), slab.numel(), 0)
    except (AttributeError, RuntimeError, AssertionError):
        return False
    return int(status) == 0
