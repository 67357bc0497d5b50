"""Where strips wait that do not fit on the device: host memory in reused buffers, pinned where a GPU can use that.

On a GPU the copies run on two streams of their own, one for each direction; everybody waits by events, nobody blocks.
Elsewhere the same code copies at once. Buffers are asked for as strips come and kept until the run ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...kernels.profile import profile_of
from .pinned import PinnedSlabs

Allocate = Callable[[int], Tensor]
"""Bytes -> a flat uint8 tensor of host memory."""


@dataclass
class Parked:
    """A strip in host memory."""

    buffer: Tensor
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    written: Any = None
    """The event after which the buffer holds the strip; None where copies are immediate."""

    def view(self) -> Tensor:
        """The strip as it lies in host memory."""
        flat = self.buffer[: self.shape.numel() * self.dtype.itemsize].view(self.dtype)
        return flat.as_strided(self.shape, self.stride)

    def image(self, number: int) -> Parked:
        """One of its images, (1, C, rows, W); images lie one behind the other."""
        size = self.stride[0] * self.dtype.itemsize
        buffer = self.buffer[number * size : (number + 1) * size]
        return Parked(buffer, torch.Size((1, *self.shape[1:])), self.stride, self.dtype, self.written)

    def settled(self) -> Tensor:
        """The same, once it is written: for readers in main memory."""
        if self.written is not None:
            self.written.synchronize()
        return self.view()


def _unpinned(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8)


class Spill:
    """Parks strips of one run and brings them back."""

    def __init__(
        self, device: torch.device, allocate: Allocate | None = None, slabs: PinnedSlabs | None = None
    ) -> None:
        """`slabs`: where a GPU's buffers come from and go back to, for runs that follow each other; None: its own."""
        self.device = device
        self.bytes_out = self.bytes_in = 0
        self.host_bytes = self.peak_host_bytes = 0
        self._asynchronous = profile_of(device.type).copy_streams
        self._own_slabs = slabs is None
        self._slabs = (slabs or PinnedSlabs()) if self._asynchronous and allocate is None else None
        self._allocate = allocate or self._slabs or _unpinned
        self._free: dict[int, list[tuple[Tensor, Any]]] = {}
        self._leaving: Tensor | None = None
        if self._asynchronous:
            self._outbound, self._inbound = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def park(self, strip: Tensor) -> Parked:
        """Copy a dense strip to host memory; its device memory is held until the next strip is parked."""
        size = strip.numel() * strip.dtype.itemsize
        waiting = self._free.get(size)
        buffer, read = waiting.pop() if waiting else (self._allocate(size), None)
        parked = Parked(buffer, strip.shape, strip.stride(), strip.dtype)
        self._count(size)
        parked.written = self._copy_out(strip, parked, read)
        return parked

    def rewrite(self, parked: Parked, number: int, image: Tensor) -> None:
        """Put another image (1, C, rows, W) in the place of one of a parked strip's."""
        parked.written = self._copy_out(image, parked.image(number), parked.written)

    def _copy_out(self, x: Tensor, place: Parked, after: Any) -> Any:
        """Begin to copy; the event after which it is there. `after`: the event that it waits for."""
        self.bytes_out += x.numel() * x.dtype.itemsize
        self.settle()
        self._leaving = x
        if not self._asynchronous:
            place.view().copy_(x)
            return None
        self._outbound.wait_stream(torch.cuda.current_stream(self.device))
        if after is not None:
            self._outbound.wait_event(after)
        with torch.cuda.stream(self._outbound):
            place.view().copy_(x, non_blocking=True)
            return self._outbound.record_event()

    def fetch(self, parked: Parked) -> tuple[Tensor, Any]:
        """Begin to bring a strip back: (device tensor, event to wait for or None). `arrived` waits for it."""
        strip = torch.empty_strided(parked.shape, parked.stride, dtype=parked.dtype, device=self.device)
        self.bytes_in += strip.numel() * strip.dtype.itemsize
        if not self._asynchronous:
            strip.copy_(parked.view())
            return strip, None
        self._inbound.wait_stream(torch.cuda.current_stream(self.device))  # the memory may just have been freed there
        self._inbound.wait_event(parked.written)
        with torch.cuda.stream(self._inbound):
            strip.copy_(parked.view(), non_blocking=True)
            return strip, self._inbound.record_event()

    def arrived(self, strip: Tensor, event: Any) -> Tensor:
        """The strip, usable from here on by the current stream."""
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(event)
        return strip

    def forget(self, parked: Parked) -> None:
        """Give a buffer back for the next strip of the same size."""
        size = parked.shape.numel() * parked.dtype.itemsize
        read = self._inbound.record_event() if self._asynchronous else None
        self._free.setdefault(size, []).append((parked.buffer, read))
        self.host_bytes -= size

    def close(self) -> None:
        """Wait for copies under way and give all buffers back to the system."""
        if self._asynchronous:
            self._outbound.synchronize()
            self._inbound.synchronize()
        self._leaving = None
        self._free.clear()
        if self._slabs is not None:
            (self._slabs.close if self._own_slabs else self._slabs.rewind)()

    def settle(self) -> None:
        """Let go of the strip parked last; the current stream first waits until it was copied."""
        if self._leaving is not None and self._asynchronous:
            torch.cuda.current_stream(self.device).wait_stream(self._outbound)
        self._leaving = None

    def _count(self, size: int) -> None:
        self.host_bytes += size
        self.peak_host_bytes = max(self.peak_host_bytes, self.host_bytes)
